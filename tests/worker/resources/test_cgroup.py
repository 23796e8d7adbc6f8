"""cgroups: over a tree of files that looks like a kernel's, and for real where this machine lets us."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker import cgroup, cgroupground
from worker.cgroup import Branch, Cgroup, CgroupLimits, Ground, disks_of, settings, survey
from worker.cgroupfigures import CgroupFigures, figures

Tree = tuple[Path, Path]
ALL = frozenset(("cpu", "memory", "io"))


def test_figures_are_read(engine_cgroup: Path, tmp_path: Path) -> None:
    (tmp_path / "block" / "253:0" / "slaves" / "sda").mkdir(parents=True)
    found = figures(engine_cgroup, tmp_path / "block")
    assert (found.processes, found.threads) == (2, 3)
    assert (found.cpu_user_s, found.cpu_system_s, found.cpu_throttled_s) == (49.203011, 12.301299, 9.005002)
    assert found.cpu_s == pytest.approx(61.50431)
    assert (found.memory_bytes, found.memory_peak_bytes, found.swap_bytes) == (2904555520, 2999999488, 4096)
    assert (found.memory_anonymous_bytes, found.memory_file_bytes) == (734003200, 2147483648)
    assert (found.out_of_memory, found.out_of_memory_kills) == (2, 1)
    # what went through the mapped device 253:0 is counted at the disk below it alone
    assert (found.read_bytes, found.written_bytes) == (1459200 + 90430464, 314773504 + 299008000)
    assert (found.read_ops, found.write_ops) == (192 + 8950, 353 + 1252)


def test_a_cgroup_that_is_gone_tells_nothing(tmp_path: Path) -> None:
    assert figures(tmp_path / "no") == CgroupFigures()


@pytest.mark.parametrize("name", ["cpu.stat", "memory.stat", "memory.events", "io.stat", "memory.current"])
@pytest.mark.parametrize("text", ["", "\n", "usage_usec\n", "usage_usec x y\n8:0 rbytes=\n", "\xff\x00", "anon -1\n"])
def test_no_file_has_to_be_as_expected(engine_cgroup: Path, name: str, text: str) -> None:
    (engine_cgroup / name).write_text(text)
    assert figures(engine_cgroup).processes == 2


def test_a_delegated_cgroup_is_found(delegated: Tree) -> None:
    assert survey(delegated[0]) == Ground(delegated[1], ALL)


def test_a_worker_in_its_leaf_divides_the_cgroup_above(delegated: Tree) -> None:
    (delegated[0] / "cgroup").write_text("0::/system.slice/puna.d/worker\n")
    assert survey(delegated[0]).folder == delegated[1]


def test_a_mount_of_a_part_of_the_tree_is_understood(delegated: Tree) -> None:
    proc, service = delegated
    (proc / "cgroup").write_text("0::/docker/abc\n")
    (proc / "mountinfo").write_text(f"35 25 0:30 /docker/abc {service} rw - cgroup2 cgroup rw\n")
    assert survey(proc).folder == service


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("mountinfo", "22 1 8:2 / / rw - ext4 /dev/sda2 rw\n", "no cgroup v2"),
        ("mountinfo", "nonsense\n", "no cgroup v2"),
        ("cgroup", "1:cpu:/\n", "outside of what it can see"),
        ("cgroup", "0::/../other\n", "outside of what it can see"),
        ("cgroup", "0::/gone\n", "not among the mounted ones"),
    ],
)
def test_no_ground_has_its_reason(delegated: Tree, file: str, text: str, told: str) -> None:
    (delegated[0] / file).write_text(text)
    found = survey(delegated[0])
    assert not found.delegated
    assert told in (found.reason or "")


def test_a_cgroup_without_our_controllers_is_no_ground(delegated: Tree) -> None:
    (delegated[1] / "cgroup.controllers").write_text("hugetlb\n")
    assert "none of the controllers" in (survey(delegated[0]).reason or "")


def test_a_cgroup_that_is_not_ours_to_write_is_no_ground(delegated: Tree) -> None:
    (delegated[1] / "cgroup.subtree_control").unlink()
    assert "Delegate=yes" in (survey(delegated[0]).reason or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write what was not delegated")
def test_a_service_without_delegation_stays_with_systemd(delegated: Tree) -> None:
    proc, service = delegated
    unit = service.rename(service.with_suffix(".service"))
    (proc / "cgroup").write_text(f"0::/system.slice/{unit.name}\n")
    assert "Delegate=yes" in (survey(proc).reason or "")


def test_the_worker_moves_to_its_leaf_and_the_branch_has_controllers(delegated: Tree) -> None:
    branch = Branch(survey(delegated[0]), "n1", pid=100)
    assert branch.grow() == Ground(delegated[1], ALL)
    assert (delegated[1] / "worker" / "cgroup.procs").read_text() == "100"
    # a file on a disk keeps the last of what is written; the kernel takes one controller after the other
    assert (delegated[1] / "cgroup.subtree_control").read_text().startswith("+")
    assert (delegated[1] / "puna-n1" / "cgroup.subtree_control").read_text().startswith("+")


def test_the_root_has_no_leaf(delegated: Tree) -> None:
    (delegated[1] / "cgroup.type").unlink()
    Branch(survey(delegated[0]), "n1", pid=100).grow()
    assert (delegated[1] / "worker" / "cgroup.procs").read_text() == ""


def test_what_cannot_be_divided_is_left_as_it_was(delegated: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[tuple[str, str]] = []

    def write(file: Path, text: str) -> None:
        writes.append((str(file.relative_to(delegated[1])), text))
        if file.name == "cgroup.subtree_control":
            raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(cgroup, "_write", write)
    found = Branch(survey(delegated[0]), "n1", pid=100).grow()
    assert "1 other processes share" in (found.reason or "")
    assert (writes[0], writes[-1]) == (("worker/cgroup.procs", "100"), ("cgroup.procs", "100"))


def test_one_controller_that_is_refused_does_not_cost_the_others(
    delegated: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(file: Path, text: str) -> None:
        if text == "+io":
            raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(cgroup, "_write", write)
    assert Branch(survey(delegated[0]), "n1", pid=100).grow().controllers == {"cpu", "memory"}


def test_limits_are_written_as_the_kernel_wants_them() -> None:
    limits = CgroupLimits(1.5, 1 << 30, 0, 1 << 20, 2 << 20)
    assert dict(settings(limits, ["8:0"], ALL)) == {
        "cpu.max": "150000 100000",
        "memory.oom.group": "1",
        "memory.max": "1073741824",
        "memory.swap.max": "0",
        "io.max": "8:0 rbps=1048576 wbps=2097152",
    }
    assert dict(settings(limits, ["8:0"], {"cpu"})) == {"cpu.max": "150000 100000"}
    assert dict(settings(CgroupLimits(), ["8:0"], ALL)) == {"memory.oom.group": "1"}
    assert dict(settings(CgroupLimits(cpu_cores=0.001), [], ALL))["cpu.max"] == "1000 100000"


def test_a_limit_that_the_kernel_refuses_does_not_keep_the_engine_from_starting(delegated: Tree, caplog: Any) -> None:
    branch = Branch(survey(delegated[0]), "n1")
    made = branch.make("engine-0", CgroupLimits(cpu_cores=1))  # a folder on a disk has no file cpu.max
    assert made is not None
    assert made.folder == delegated[1] / "puna-n1" / "engine-0"
    assert [row.limit for row in caplog.records if row.msg == "limit_refused"] == ["cpu.max", "memory.oom.group"]


def test_empty_cgroups_of_earlier_engines_are_removed(
    delegated: Tree, write_files: Callable[[Path, dict[str, str]], Path]
) -> None:
    branch = Branch(survey(delegated[0]), "n1")
    home = delegated[1] / "puna-n1"
    for name in ("engine-0", "engine-1"):
        (home / name).mkdir()
    write_files(home / "engine-2", {"cgroup.events": "populated 1\nfrozen 0\n"})
    assert branch.tidy({"engine-0"}) == ["engine-1"]
    assert {each.name for each in home.iterdir() if each.is_dir()} == {"engine-0", "engine-2"}


def test_a_limit_of_a_partition_is_set_on_its_disk(tmp_path: Path, write_files: Any) -> None:
    number = tmp_path.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    disk = tmp_path / "devices" / "sda"
    write_files(disk, {"dev": "8:0\n", "sda1/partition": "1\n", "sda1/dev": f"{name}\n"})
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / name).symlink_to(disk / "sda1")
    assert disks_of([tmp_path, tmp_path / "gone", tmp_path], tmp_path / "block") == ["8:0"]
    assert disks_of([tmp_path], tmp_path / "nothing") == []


# -- for real ----------------------------------------------------------------------------------------------------------
def real_root() -> Path | None:
    """Our own cgroup, if we may make others in it; its controllers do not matter for what is tried here."""
    own = cgroupground._own_folder(cgroupground.PROC)
    return own if isinstance(own, Path) and cgroupground._may_divide(own) else None


@pytest.fixture
def real(tmp_path: Path) -> Any:
    root = real_root()
    if root is None:
        pytest.skip(f"no cgroup to divide: {survey().reason}")
    folder = root / f"puna-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for child in [*folder.iterdir()]:
        if child.is_dir():
            Cgroup(child).remove()
    folder.rmdir()


CHILD = """
import os, sys, time
with open(os.environ["MEMBERS"], "w") as file:
    file.write("0")
if os.fork():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    print("ready")
time.sleep(60)
"""


def test_an_engine_is_counted_killed_and_removed_with_all_it_started(real: Path, run_program: Any) -> None:
    one = Cgroup(real / "engine-0")
    one.folder.mkdir()
    process = run_program(CHILD, env={**os.environ, "MEMBERS": str(one.procs)})
    assert process.pid in one.pids
    assert (len(one.pids), one.populated) == (2, True)
    assert (one.figures().cpu_s or 0) >= 0.2
    assert one.remove()
    assert not one.folder.exists()
    assert process.wait(5) == -signal.SIGKILL
    assert one.remove()


def test_a_cgroup_is_empty_when_an_engine_gets_it(real: Path, run_program: Any) -> None:
    branch = Branch(Ground(real), "n1")
    (real / "puna-n1" / "engine-0").mkdir(parents=True)
    old = Cgroup(real / "puna-n1" / "engine-0")
    process = run_program(CHILD, env={**os.environ, "MEMBERS": str(old.procs)})
    made = branch.make("engine-0", CgroupLimits())
    assert made == old
    assert not old.populated
    assert process.wait(5) == -signal.SIGKILL
    assert branch.tidy(()) == ["engine-0"]
    with contextlib.suppress(OSError):
        (real / "puna-n1").rmdir()


def test_a_real_limit_of_memory_ends_the_engine_and_is_told(run_program: Any) -> None:
    ground = survey()
    if "memory" not in ground.controllers:
        pytest.skip(f"no controller of memory: {ground.reason}")
    branch = Branch(ground, f"test-{os.getpid()}")
    if "memory" not in branch.grow().controllers:
        pytest.skip(f"no controller of memory: {branch.ground.reason}")
    made = branch.make("engine-0", CgroupLimits(memory_bytes=64 << 20, swap_bytes=0))
    assert made is not None
    code = "import os\nwith open(os.environ['M'], 'w') as f: f.write('0')\nprint('ready')\nx = bytearray(256 << 20)\n"
    process = run_program(code, env={**os.environ, "M": str(made.procs)})
    assert process.wait(20) == -signal.SIGKILL
    assert made.figures().out_of_memory_kills
    assert made.remove()
