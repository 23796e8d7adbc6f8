"""The confinement of an engine, from its making to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.cgroup import Ground
from worker.cgroupfigures import CgroupFigures
from worker.confines import Confines, scratch_root
from worker.settings import WorkerSettings

NONE = Ground(reason="cgroup v2 is not delegated to this process")


def settings_of(tmp_path: Path, **more: Any) -> WorkerSettings:
    given = {"node": "n1", "state_dir": str(tmp_path / "state"), "models": [{"model": "m", "path": "/m.gguf"}]}
    return WorkerSettings.model_validate(given | more)


def test_an_engine_gets_a_cgroup_a_folder_and_its_limits(delegated: tuple[Path, Path], tmp_path: Path) -> None:
    ground = Ground(delegated[1], frozenset(("cpu", "memory")))
    confines = Confines(settings_of(tmp_path, limits={"nice": 4, "open_files": 512}), ground=ground)
    what = confines.make("engine-0", "m", ["cpu:0"])
    assert (dict(what.rlimits), what.nice) == ({"core": 0, "nofile": 512}, 4)
    assert what.cgroup == str(delegated[1] / "puna-n1" / "engine-0")
    assert what.scratch == str(tmp_path / "state" / "scratch" / "engine-0")
    confines.free("engine-0")
    assert not Path(what.cgroup).exists()
    assert not Path(what.scratch).exists()
    confines.free("engine-0")


def test_without_cgroups_only_what_can_be_had_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    confines = Confines(settings_of(tmp_path, limits={"cpu_cores": 1, "memory_bytes": 1 << 30}), ground=NONE)
    confines.begin()
    first = confines.make("engine-0", "m", ["cpu:0"])
    assert (dict(first.rlimits), first.cgroup) == ({"core": 0, "data": 1 << 30}, None)
    confines.make("engine-1", "m", ["cpu:0"])
    told = [getattr(row, "limit", "") for row in caplog.records if row.msg == "limit_not_enforced"]
    assert told == ["limits.cpu_cores"]
    assert confines.figures("engine-0") == CgroupFigures()
    assert confines.killed_for_memory("engine-0") is None
    confines.free("engine-0")


def test_a_kill_for_want_of_memory_is_told_from_a_crash(delegated: tuple[Path, Path], tmp_path: Path) -> None:
    confines = Confines(settings_of(tmp_path), ground=Ground(delegated[1], frozenset(("memory",))))
    what = confines.make("engine-0", "m", ["cpu:0"])
    assert what.cgroup
    assert confines.killed_for_memory("engine-0") is None
    for count, told in ((0, False), (1, True)):
        (Path(what.cgroup) / "memory.events").write_text(f"oom {count}\noom_kill {count}\n")
        assert confines.killed_for_memory("engine-0") is told


def test_folders_of_earlier_lives_go_but_for_engines_taken_over(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = Confines(settings, ground=NONE)
    for name in ("engine-0", "engine-1"):
        before.make(name, "m", ["cpu:0"])
    Confines(settings, ground=NONE).begin(["engine-1"])
    assert [each.name for each in scratch_root(settings).iterdir()] == ["engine-1"]


def test_nodes_that_share_a_scratch_disk_do_not_meet(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, limits={"scratch_dir": str(tmp_path / "fast")})
    assert scratch_root(settings) == tmp_path / "fast" / "n1"


def test_switched_off_is_told_as_such(tmp_path: Path) -> None:
    confines = Confines(settings_of(tmp_path, limits={"cgroup_v2": False}))
    assert confines.ground.reason == "limits.cgroup_v2 is false"
