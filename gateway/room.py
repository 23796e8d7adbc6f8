"""An engine with so much room that a request need not stand in line for it.

The line costs a message through a stream, about 0.2 ms. Where an engine has at least half of its slots free the line is
empty, and who gets the request is all one: so it is offered there at once, and goes into the line if that comes to
nothing. A heartbeat is up to 0.2 s old, so what this gateway itself has there counts as it is, and an engine that did
not take an offer is left alone for a while. Plain; owns no clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from gateway.affinity import Home
from gateway.serving import Model, Serving

FREE_SHARE: Final = 0.5
LEFT_ALONE_S: Final = 0.5
"""After a refusal."""
SILENT_S: Final = 3.0
"""After no answer: a node that is gone or frozen leaves the fleet's view by itself."""
LOOKED_AT_LIMIT: Final = 8
"""Engines that are looked at for one request, however many there are."""
LEFT_ALONE_LIMIT: Final = 4096
NO_KEY: Final = b""

Place = tuple[str, str]
"""Node and engine."""


class Room:
    """Owner of what this gateway has on each engine by its own offers, and of who is left alone. Engines take turns, so
    that a quiet fleet shares its work."""

    def __init__(self) -> None:
        self._here: Counter[Place] = Counter()
        self._alone_until: dict[Place, float] = {}
        self._turn = 0

    def find(self, model: Model, now: float) -> Home | None:
        """An engine to offer a request of the model to. GPUs before processors, as in the line."""
        ready = model.takers
        self._turn += 1
        for number in range(min(len(ready), LOOKED_AT_LIMIT)):
            serving = ready[(self._turn + number) % len(ready)]
            if self._has_room(serving, now):
                engine = serving.engine
                return Home(NO_KEY, serving.node, engine.engine, engine.pid, 0, now)
        return None

    def begun(self, home: Home) -> None:
        """A request was offered there."""
        self._here[home.node, home.engine] += 1

    def over(self, home: Home) -> None:
        """It ended, or was not taken."""
        place = (home.node, home.engine)
        self._here[place] -= 1
        if self._here[place] <= 0:
            del self._here[place]

    def failed(self, home: Home, now: float, *, silent: bool) -> None:
        """It was not taken."""
        if len(self._alone_until) >= LEFT_ALONE_LIMIT:
            self._alone_until = {place: until for place, until in self._alone_until.items() if until > now}
        self._alone_until[home.node, home.engine] = now + (SILENT_S if silent else LEFT_ALONE_S)

    def _has_room(self, serving: Serving, now: float) -> bool:
        engine = serving.engine
        place = (serving.node, engine.engine)
        if now < self._alone_until.get(place, now):
            return False
        free = engine.slots_total - max(engine.slots_busy, self._here[place])
        return free > 0 and free >= engine.slots_total * FREE_SHARE
