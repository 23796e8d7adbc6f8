"""The deadlines of one connection: what the client has to do next, and by when."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from web.limits import Limits
from web.outlet import Outlet
from web.reader import Phase


class Clock:
    """One deadline for the input, one for a client that does not take its output. Times in loop seconds."""

    __slots__ = ("_deadline", "_limits", "_outlet", "_stall_deadline", "_time", "_timed")

    def __init__(self, limits: Limits, outlet: Outlet, time: Callable[[], float]) -> None:
        self._limits = limits
        self._outlet = outlet
        self._time = time
        self._timed = -1
        self._deadline = time() + limits.idle_s
        self._stall_deadline = inf

    def arm(self, phase: Phase, messages: int, *, ours: bool) -> None:
        """Set the deadline for the input; none if it is on us to act. A request under way keeps the one it has."""
        limits = self._limits
        if ours:
            self.off()
        elif phase is Phase.IDLE:
            self._deadline, self._timed = self._time() + limits.idle_s, -1
        elif (timed := messages * len(Phase) + phase) != self._timed:
            limit_s = limits.header_s if phase is Phase.HEAD else limits.body_s
            self._deadline, self._timed = self._time() + limit_s, timed

    def off(self) -> None:
        """Nothing is due."""
        self._deadline, self._timed = inf, -1

    def linger(self) -> None:
        """The client may take this long to notice that it was refused."""
        self._deadline = self._time() + self._limits.linger_s
        self.watch_stall()

    def passed(self, now: float) -> bool:
        """Whether the deadline for the input has passed."""
        return now >= self._deadline

    def watch_stall(self) -> None:
        """From now on the client has to take some of its output in time."""
        self._stall_deadline = self._time() + self._limits.write_stall_s
        self._outlet.progressed()

    def stalled(self, now: float) -> bool:
        """Whether the client took nothing for too long."""
        if self._outlet.progressed():
            self._stall_deadline = now + self._limits.write_stall_s
            return False
        return now >= self._stall_deadline
