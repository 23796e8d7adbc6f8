"""Cross-origin calls from web pages: refused by browsers unless the operator lists the page's origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from web import Header

_EXPOSED: Final = "x-request-id, retry-after, retry-after-ms, x-should-retry, openai-processing-ms, x-puna-node"
_MAX_AGE_S: Final = 600


class Cors:
    """The allow-list. Empty: no header is ever sent."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request comes from a page that may call."""
        origin = headers.get("origin")
        return origin is not None and (origin in self._origins or "*" in self._origins)

    def headers(self, headers: Mapping[str, str]) -> list[Header]:
        """What every answer to such a page carries."""
        if not self._origins or not self.allows(headers):
            return []
        return [
            ("access-control-allow-origin", headers["origin"]),
            ("access-control-expose-headers", _EXPOSED),
            ("vary", "origin"),
        ]

    def preflight(self, headers: Mapping[str, str]) -> list[Header]:
        """What the answer to a browser's question before the call adds."""
        wanted = headers.get("access-control-request-headers", "authorization, content-type")
        return [
            ("access-control-allow-methods", "GET, POST, OPTIONS"),
            ("access-control-allow-headers", wanted),
            ("access-control-max-age", str(_MAX_AGE_S)),
        ]
