"""What happens to the copies on this node, as events: `copy_<state>` where one enters a state, `copy_removed` and
`copy_evicted` where it goes.

What a start finds on the disks is no news: nothing is told before the store is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from schemas.model import CopyRecord

EVICTED: Final = "room was needed"
"""The reason of a copy that goes because its disk is full."""
_FACTS: Final = ("source", "revision", "generation", "reason", "error", "size_bytes", "attempt", "next_retry_at")


class CopyEvents:
    """Knows the last record of each copy, as progress alone is no event."""

    def __init__(self, tell: Callable[..., None], is_open: Callable[[], bool]) -> None:
        self._tell = tell
        self._is_open = is_open
        self._last: dict[str, CopyRecord] = {}

    def told(self, model: str, record: CopyRecord | None) -> bool:
        """A copy is this now; None: there is none any more. Returns whether its state is another one."""
        before = self._last.pop(model, None)
        if record is not None:
            self._last[model] = record
        if (before and before.state) == (record and record.state):
            return False
        if self._is_open() and record is not None:
            self._tell(f"copy_{record.state.lower()}", model=model, **_facts(record))
        elif self._is_open() and before is not None:
            gone = "evicted" if before.reason == EVICTED else "removed"
            self._tell(f"copy_{gone}", model=model, **_facts(before))
        return True


def _facts(record: CopyRecord) -> dict[str, Any]:
    """What is known, and nothing else."""
    found = {name: getattr(record, name) for name in _FACTS}
    return {name: value for name, value in found.items() if value}
