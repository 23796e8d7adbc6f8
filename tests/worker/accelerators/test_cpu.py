"""The processors, within what a cgroup allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.accelerators import discover, environment, sample
from worker.accelerators.cpu import Cpu


def test_every_host_has_its_processors() -> None:
    found = sample(discover())[-1]
    assert (found.device, found.backend) == ("cpu:0", "cpu")
    assert 0 < found.memory_free_bytes <= found.memory_total_bytes


def test_a_cgroups_limit_counts_and_page_cache_does_not(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\nactive_file 300000\ninactive_file 200000\n")
    (device,) = Cpu(cgroup=tmp_path).sample()
    assert (device.memory_total_bytes, device.memory_free_bytes) == (1_000_000, 800_000)


def test_a_cgroup_without_a_limit_is_the_host(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (limited,), (host,) = Cpu(cgroup=tmp_path).sample(), Cpu(cgroup=tmp_path / "none").sample()
    assert limited.memory_total_bytes == host.memory_total_bytes


@pytest.mark.parametrize("text", ["", "²", "-1", "max max", "9" * 400, "\x00"])
def test_files_of_a_cgroup_that_hold_nonsense_are_no_limit(tmp_path: Path, text: str) -> None:
    for name in ("memory.max", "memory.current", "memory.stat"):
        (tmp_path / name).write_text(f"{text}\nactive_file {text}\nactive_file\n")
    (device,) = Cpu(cgroup=tmp_path, cpu_info=tmp_path / "memory.max").sample()
    assert 0 < device.memory_free_bytes <= device.memory_total_bytes


def test_an_engine_on_the_cpu_sees_no_gpu(nvml: object) -> None:
    assert environment([Cpu()], ["cpu:0"]) == {}
