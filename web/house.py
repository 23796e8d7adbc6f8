"""What all connections of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from schemas.errors import PunaError
from web.exchange import Exchange
from web.limits import Limits
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
    connections: set[Guest] = field(default_factory=lambda: set[Guest]())
    draining: bool = False
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
