"""Which views are open: by this worker's engines, and, on a root that several share, by other workers'."""

from __future__ import annotations

import fcntl
import logging
import os
from collections import Counter

from worker.store import layout
from worker.store.root import Root
from worker.store.sweep import unused_elsewhere

log = logging.getLogger(__name__)
View = tuple[str, str]
"""Model and token."""


class Use:
    """A view that must not go. Safe to release twice."""

    def __init__(self, uses: Uses, view: View) -> None:
        self._uses: Uses | None = uses
        self._view = view

    def release(self) -> None:
        """It may go."""
        uses, self._uses = self._uses, None
        if uses is not None:
            uses.drop(self._view)


class Uses:
    """Counts, with a shared lock on the manifest of each used view, which goes with the process."""

    def __init__(self) -> None:
        self._counts: Counter[View] = Counter()
        self._locks: dict[View, int] = {}

    def __contains__(self, view: View) -> bool:
        return self._counts[view] > 0

    @property
    def models(self) -> set[str]:
        """Those with a view in use."""
        return {model for (model, _), count in self._counts.items() if count > 0}

    def add(self, root: Root, view: View) -> Use:
        """Use a view. Blocks for as long as a lock takes, and waits for nobody."""
        self._counts[view] += 1
        if view not in self._locks:
            place = (*layout.model_folder(view[0]), view[1], layout.MANIFEST)
            try:
                held = root.disk.lock(place, shared=True)
            except OSError as error:
                log.info("use_unlocked", extra={"event": "use_unlocked", "model": view[0], "error": error.strerror})
                held = None
            if held is not None:
                self._locks[view] = held
        return Use(self, view)

    def nobody_else(self, root: Root, view: View) -> bool:
        """Whether no other worker uses a view."""
        held = self._locks.get(view)
        if held is None:
            return unused_elsewhere(root, (*layout.model_folder(view[0]), view[1]))
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(held, fcntl.LOCK_SH)
        return True

    def drop(self, view: View) -> None:
        """One user less."""
        self._counts[view] -= 1
        if self._counts[view] <= 0:
            del self._counts[view]
            held = self._locks.pop(view, None)
            if held is not None:
                os.close(held)
