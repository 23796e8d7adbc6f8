"""What all connections of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from schemas.errors import PunaError
from web.exchange import Exchange
from web.headers import remedy_headers
from web.limits import Limits
from web.message import Header
from web.outlet import JoinWindow


class Guest(Protocol):
    """A connection, as its server sees it."""

    def drain(self) -> None:
        """The server stops: end the connection if nothing runs on it."""
        ...

    def kill(self) -> None:
        """End the connection now."""
        ...

    def sweep(self, now: float) -> None:
        """Act on a deadline that has passed."""
        ...


@dataclass(slots=True)
class House:
    """What all connections of one server share."""

    loop: asyncio.AbstractEventLoop
    handler: Callable[[Exchange], None]
    limits: Limits
    window: JoinWindow
    render_error: Callable[[PunaError], bytes]
    refusal_headers: Callable[[Mapping[str, str]], Sequence[Header]]
    connections: set[Guest] = field(default_factory=lambda: set[Guest]())
    draining: bool = False
    emptied: asyncio.Event = field(default_factory=asyncio.Event)

    def headers_of(self, error: PunaError, asked: Mapping[str, str]) -> list[Header]:
        """The headers of the server's own answer to a request of which the headers `asked` are known."""
        return [*self.refusal_headers(asked), *remedy_headers(error)]
