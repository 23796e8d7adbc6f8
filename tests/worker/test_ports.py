"""Port leases: one holder a port, over processes, with a rest after use."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.errors import Unavailable
from worker.ports import PortPool, shared_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def first(tmp_path: Path) -> int:
    """The first of three ports in a row that were free a moment ago."""
    for port in range(23000, 24000, 3):
        try:
            for step in range(3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + step))
        except OSError:
            continue
        return port
    raise AssertionError("no three free ports")


def test_no_port_is_leased_twice(tmp_path: Path, first: int) -> None:
    pool, other = (PortPool(first, first + 2, folder=tmp_path) for _ in range(2))
    held = [pool.lease(), other.lease(), pool.lease()]
    assert sorted(lease.port for lease in held) == [first, first + 1, first + 2]
    with pytest.raises(Unavailable, match=f"{first}-{first + 2}"):
        other.lease()
    for lease in held:
        lease.release()


def test_a_port_rests_after_use_whoever_asks(tmp_path: Path, first: int) -> None:
    PortPool(first, first, folder=tmp_path).lease().release()
    with pytest.raises(Unavailable, match="resting 60 s"):
        PortPool(first, first, folder=tmp_path).lease()
    PortPool(first, first, cooldown_s=0, folder=tmp_path).lease().release()


def test_a_port_that_has_rested_is_leased_again(tmp_path: Path, first: int) -> None:
    PortPool(first, first, folder=tmp_path).lease().release()
    (file,) = tmp_path.iterdir()
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 61))
    with PortPool(first, first, folder=tmp_path).lease() as lease:
        assert lease.port == first


def test_a_port_that_somebody_listens_on_is_passed_over(tmp_path: Path, first: int) -> None:
    with socket.create_server(("127.0.0.1", first)), PortPool(first, first + 1, folder=tmp_path).lease() as lease:
        assert lease.port == first + 1


def test_the_leases_of_a_killed_worker_are_free(tmp_path: Path, first: int) -> None:
    program = (
        f"import os; from pathlib import Path; from worker.ports import PortPool; "
        f"PortPool({first}, {first}, folder=Path({str(tmp_path)!r})).lease(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    PortPool(first, first, cooldown_s=0, folder=tmp_path).lease().release()


def test_thirty_threads_get_thirty_ports(tmp_path: Path) -> None:
    pool = PortPool(24000, 24999, cooldown_s=0, folder=tmp_path)
    leases: list[int] = []
    held: list[object] = []

    def take() -> None:
        lease = pool.lease()
        held.append(lease)
        leases.append(lease.port)

    threads = [threading.Thread(target=take) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(leases)) == 30


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"puna-ports-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        shared_folder()


@pytest.mark.parametrize(("low", "high"), [(0, 10), (10, 5), (65000, 70000)])
def test_a_range_that_is_none_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="give the first and the last"):
        PortPool(low, high)
