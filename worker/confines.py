"""The confinement of each engine: limits, cgroup and scratch folder, made before it starts and removed when it is gone.

All of it blocks for as long as a few files take: call it from a thread.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from worker.cgroup import Branch, CgroupLimits, Ground, disks_of, survey
from worker.cgroupfigures import CgroupFigures
from worker.launch import Confinement
from worker.limits import enforcement
from worker.scratch import Scratch, Size
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

SCRATCH: Final = "scratch"
_NO_FIGURES: Final = CgroupFigures()


class Confines:
    """Of one node's engines. `ground` is for those who bring a tree of cgroups of their own."""

    def __init__(self, settings: WorkerSettings, *, ground: Ground | None = None) -> None:
        self.scratch = Scratch(scratch_root(settings))
        self._settings = settings
        self._branch = Branch(_ground(settings) if ground is None else ground, settings.node)
        self._told = set[tuple[str, str]]()

    @property
    def ground(self) -> Ground:
        """Whether engines have cgroups, and why not."""
        return self._branch.ground

    def begin(self, keep: Collection[str] = ()) -> None:
        """Once, before the first engine: divide our cgroup, remove what earlier lives left but for the engines `keep`,
        which were taken over as they run."""
        self._branch.grow()
        self.tidy(keep)

    def tidy(self, keep: Collection[str]) -> None:
        """Remove what is left of other engines than `keep`. A cgroup in which something still runs stays."""
        left = {*self.scratch.clean(keep), *self._branch.tidy(keep)}
        if left:
            log.info("leftovers_removed", extra={"event": "leftovers_removed", "engines": sorted(left)})

    def make(self, engine: str, model: str, devices: Sequence[str]) -> Confinement:
        """For a new process of an engine: an empty scratch folder and an empty cgroup. What cannot be had is told and
        done without, but for the folder. Raises `OSError`."""
        limits = self._settings.limits_of(model)
        how = enforcement(limits, devices, self.ground, core_dumps=self._settings.limits.core_dumps)
        self._tell(model, how.not_enforced)
        return Confinement(
            rlimits=how.rlimits,
            nice=how.nice,
            cgroup=self._cgroup(engine, model, how.cgroup),
            scratch=str(self.scratch.make(engine)),
        )

    def free(self, engine: str) -> None:
        """The engine and all its processes are gone: remove its folder and its cgroup. Safe to call twice."""
        self.scratch.remove(engine)
        if self.ground.delegated:
            self._branch.of(engine).remove()

    def figures(self, engine: str) -> CgroupFigures:
        """What its cgroup tells; nothing where there is none."""
        return self._branch.of(engine).figures() if self.ground.delegated else _NO_FIGURES

    def killed_for_memory(self, engine: str) -> bool | None:
        """Whether the kernel has ended a process of it for want of memory; None where no cgroup tells. To be asked
        before `free`."""
        kills = self.figures(engine).out_of_memory_kills
        return None if kills is None else kills > 0

    def scratch_size(self, engine: str) -> Size:
        """What its scratch folder holds."""
        return self.scratch.size(engine)

    def _cgroup(self, engine: str, model: str, limits: CgroupLimits | None) -> str | None:
        if limits is None:
            return None
        paths = [self._settings.state_folder, *(each.path for each in self._settings.models if each.model == model)]
        try:
            cgroup = self._branch.make(engine, limits, disks_of(paths))
        except OSError as error:
            fields = {"event": "cgroup_missing", "engine": engine, "reason": error.strerror}
            log.warning("cgroup_missing", extra=fields)
            return None
        return str(cgroup.folder) if cgroup else None

    def _tell(self, model: str, names: Sequence[str]) -> None:
        """Once for each model and limit."""
        for name in names:
            if (model, name) not in self._told:
                self._told.add((model, name))
                fields = {"event": "limit_not_enforced", "model": model, "limit": f"limits.{name}"}
                log.warning("limit_not_enforced", extra=fields | {"reason": self.ground.reason})


def scratch_root(settings: WorkerSettings) -> Path:
    """A shared folder has one for each node."""
    chosen = settings.limits.scratch_dir
    return chosen / settings.node if chosen else settings.state_folder / SCRATCH


def _ground(settings: WorkerSettings) -> Ground:
    return survey() if settings.limits.cgroup_v2 else Ground(reason="limits.cgroup_v2 is false")
