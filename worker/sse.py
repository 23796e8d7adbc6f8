"""Streams of server-sent events as bytes: where they may be cut, and what their last bytes tell. Nothing is parsed on
the way of a chunk; the end is looked at once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

BLANK: Final = b"\n\n"
_TERMINATORS: Final = {"chat": b"data: [DONE]", "completions": b"data: [DONE]", "messages": b"message_stop"}
_DECODER: Final = json.JSONDecoder()


def cut(rest: bytes, data: bytes) -> tuple[bytes, bytes]:
    """What may go out now, up to the last blank line, and what must wait for more. `rest` is what waited so far."""
    if not rest and data.endswith(BLANK):
        return data, b""
    joined = rest + data
    end = joined.rfind(BLANK, max(len(rest) - 1, 0))
    return (joined[: end + 2], joined[end + 2 :]) if end >= 0 else (b"", joined)


def pieces(data: bytes, limit_bytes: int) -> Sequence[bytes]:
    """`data` in pieces of at most `limit_bytes`."""
    if len(data) <= limit_bytes:
        return (data,)
    return [data[start : start + limit_bytes] for start in range(0, len(data), limit_bytes)]


class Tail:
    """The last chunks of an answer."""

    __slots__ = ("_chunks", "add")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque(maxlen=4)
        self.add = self._chunks.append
        """Note one more chunk."""

    def is_whole(self, op: str) -> bool:
        """Whether a stream of this operation ended as its protocol has it."""
        marker = _TERMINATORS.get(op)
        return marker is None or marker in b"".join(self._chunks)[-4096:]

    def facts(self) -> dict[str, Any]:
        """`usage` and `timings` of the engine, where the last bytes hold them."""
        text = b"".join(self._chunks)[-16384:].decode(errors="replace")
        found = {name: _object_after(text, f'"{name}":') for name in ("usage", "timings")}
        return {name: value for name, value in found.items() if value is not None}


def _object_after(text: str, key: str) -> dict[str, Any] | None:
    """The JSON object behind the last `key`. Quotes inside JSON strings are escaped, so no text can look like a key."""
    at = text.rfind(key)
    start = text.find("{", at, at + len(key) + 2) if at >= 0 else -1
    if start < 0:
        return None
    try:
        value, _ = _DECODER.raw_decode(text, start)
    except ValueError:
        return None
    return cast(dict[str, Any], value)
