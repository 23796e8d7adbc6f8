"""Which views are open: by this worker's engines, and, on a root that several share, by other workers'."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
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
    """Counts, with a shared lock on the manifest of each used view, which goes with the process. Safe from threads."""

    def __init__(self) -> None:
        self._counts: Counter[View] = Counter()
        self._locks: dict[View, int] = {}
        self._changing = threading.Lock()

    def __contains__(self, view: View) -> bool:
        with self._changing:
            return view in self._counts

    @property
    def models(self) -> set[str]:
        """Those with a view in use."""
        with self._changing:
            return {model for model, _ in self._counts}

    def add(self, root: Root, view: View) -> Use:
        """Use a view. Blocks for as long as a lock takes, and waits for nobody."""
        with self._changing:
            self._counts[view] += 1
            if view not in self._locks and (held := _shared_lock(root, view)) is not None:
                self._locks[view] = held
        return Use(self, view)

    def nobody_else(self, root: Root, view: View) -> bool:
        """Whether no other worker uses a view."""
        with self._changing:
            held = self._locks.get(view)
            if held is not None:
                return _alone(held)
        return unused_elsewhere(root, (*layout.model_folder(view[0]), view[1]))

    def drop(self, view: View) -> None:
        """One user less."""
        with self._changing:
            self._counts[view] -= 1
            if self._counts[view] > 0:
                return
            del self._counts[view]
            held = self._locks.pop(view, None)
        if held is not None:
            os.close(held)


def _shared_lock(root: Root, view: View) -> int | None:
    try:
        return root.disk.lock((*layout.model_folder(view[0]), view[1], layout.MANIFEST), shared=True)
    except OSError as error:
        log.info("use_unlocked", extra={"event": "use_unlocked", "model": view[0], "error": error.strerror})
        return None


def _alone(held: int) -> bool:
    """Whether nobody else shares our lock."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(held, fcntl.LOCK_SH)
    return True
