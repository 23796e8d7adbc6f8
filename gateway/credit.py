"""Credit: once a second each node is told which of its frames have been written out, all its streams in one message."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from gateway.stream import Stream
from schemas.reply import encode_credit

CREDIT_EVERY_S: Final = 1.0
LINES_LIMIT: Final = 4096
"""Streams in one message; a node with more gets several."""


def messages(streams: Iterable[Stream], slow_client_bytes: int) -> list[tuple[str, bytes]]:
    """(node, message) for every node that works for one of `streams`."""
    lines: defaultdict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for stream in streams:
        if stream.node is not None:
            lines[stream.node].append(stream.credit(slow_client_bytes))
    return [
        (node, encode_credit(each[start : start + LINES_LIMIT]))
        for node, each in lines.items()
        for start in range(0, len(each), LINES_LIMIT)
    ]
