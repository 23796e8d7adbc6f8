"""What all downloads of a node share when they take from other nodes; and the count of bytes that they tell."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from bus.connection import Bus
from worker.peers.client import PeerClient
from worker.peers.hands import Hands
from worker.peers.holders import Shunned
from worker.peers.holdings import Holdings
from worker.peers.metrics import PeerWatch
from worker.peers.questions import Questions
from worker.peers.settings import PeerSettings


class Tell(Protocol):
    """Publishes an event."""

    def __call__(self, kind: str, **facts: Any) -> None: ...


@dataclass(slots=True)
class Crowd:
    """`downloads`: chunks that may be received at once. `run` starts a named task."""

    bus: Bus
    node: str
    settings: PeerSettings
    holdings: Holdings
    questions: Questions
    client: PeerClient
    hands: Hands
    tell: Tell
    run: Callable[[str, Coroutine[Any, Any, None]], object]
    watch: PeerWatch = field(default_factory=PeerWatch)
    clock: Callable[[], float] = time.monotonic
    dice: Callable[[], float] = random.random
    shunned: Shunned = field(init=False)
    downloads: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.shunned = Shunned(self.clock)
        self.downloads = asyncio.Semaphore(self.settings.max_downloads)


class Tally:
    """One count out of two ways that follow each other: `on_bytes` hears what is there now, and never of it twice."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes
        self._told = 0

    def there(self, bytes_: int) -> None:
        """So many are there."""
        if bytes_ != self._told:
            step, self._told = bytes_ - self._told, bytes_
            self._on_bytes(step)

    def source(self) -> Source:
        """For a download that goes on with what is there."""
        return Source(self, self._told)


class Source:
    """What a download tells: first what is there, then what comes. `forgot`: it threw away what was there."""

    def __init__(self, tally: Tally, before: int) -> None:
        self.forgot = False
        self.moved = 0
        self.on_forgot: Callable[[], None] = lambda: None
        self._tally = tally
        self._shown = before
        self._bytes = 0

    def __call__(self, bytes_: int) -> None:
        self._bytes += bytes_
        self.moved += 1
        if bytes_ < 0:
            self.forgot = True
            self.on_forgot()
            self._shown = self._bytes
        self._shown = max(self._shown, self._bytes)
        self._tally.there(self._shown)
