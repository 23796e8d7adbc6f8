"""Who wants to hear of sessions and may leave again: pulls and followers come and go, `Bus`'s own callbacks stay."""

from __future__ import annotations

import secrets
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from bus.connection import Bus


class SessionPart(Protocol):
    """Plain calls; neither may raise."""

    def session_began(self) -> None:
        """Subscriptions are replayed; ask for everything anew."""
        ...

    def session_lost(self) -> None:
        """The connection went, and with it all that was asked."""
        ...


class Listeners:
    """The parts of one bus."""

    def __init__(self) -> None:
        self._parts: dict[int, SessionPart] = {}

    @classmethod
    def of(cls, bus: Bus) -> Listeners:
        """The one of this bus; it is made, and registered with the bus, at the first call."""
        found = _BY_BUS.get(bus)
        if found is None:
            found = _BY_BUS[bus] = cls()
            bus.on_session(found._began)
            bus.on_lost(found._lost)
        return found

    def add(self, part: SessionPart) -> None:
        """From the next session on. Adding twice changes nothing."""
        self._parts[id(part)] = part

    def remove(self, part: SessionPart) -> None:
        """Safe to call twice."""
        self._parts.pop(id(part), None)

    async def _began(self) -> None:
        for part in list(self._parts.values()):
            part.session_began()

    def _lost(self) -> None:
        for part in list(self._parts.values()):
            part.session_lost()


_BY_BUS: Final[WeakKeyDictionary[Bus, Listeners]] = WeakKeyDictionary()


def new_inbox(bus: Bus) -> str:
    """A subject that nobody else listens to, under the prefix that this user may subscribe to."""
    return f"{bus.settings.inbox_prefix}.{secrets.token_hex(11)}"


def api_subject(bus: Bus, api: str) -> str:
    """The subject of a call of the JetStream API, in the bus's domain."""
    domain = bus.settings.jetstream_domain
    return f"$JS.{domain}.API.{api}" if domain else f"$JS.API.{api}"
