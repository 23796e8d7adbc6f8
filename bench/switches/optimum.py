"""The least number of loads with which a trace of requests can be served in its order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence


def belady(models: Sequence[str], places: int) -> int:
    """Loads of the offline optimum (Belady, 1966): who is needed last goes. Every first load counts.

    Raises `ValueError` without a place.
    """
    if places < 1:
        raise ValueError("at least one place is needed")
    uses = defaultdict[str, deque[int]](deque)
    for at, model in enumerate(models):
        uses[model].append(at)
    there: set[str] = set()
    loads = 0
    for model in models:
        uses[model].popleft()
        if model in there:
            continue
        loads += 1
        if len(there) == places:
            there.remove(max(there, key=lambda each: (uses[each][0] if uses[each] else len(models), each)))
        there.add(model)
    return loads
