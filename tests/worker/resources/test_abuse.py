"""Who takes too much is told, then has to go, once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.abuse import Watchman
from worker.cgroupfigures import CgroupFigures
from worker.limits import EngineLimits
from worker.scratch import Scratch
from worker.usage import Sources, Watched

MIB = 1 << 20


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch")


def watchman(
    watched: list[Watched], scratch: Scratch, limits: EngineLimits, on_abuse: Callable[[str, str], None]
) -> Watchman:
    sources = Sources(
        engines=lambda: watched,
        places={},
        cgroup=lambda _: CgroupFigures(),
        scratch_bytes=lambda engine: scratch.size(engine).size_bytes,
    )
    return Watchman(sources, lambda _: limits, on_abuse, interval_s=30)


async def test_a_scratch_folder_that_fills_is_told_at_nine_tenths_and_ends_the_engine_over_its_quota(
    scratch: Scratch, caplog: Any
) -> None:
    watched, ended = [Watched("engine-0", "m", os.getpid())], list[tuple[str, str]]()
    one = watchman(watched, scratch, EngineLimits(scratch_bytes=4 * MIB), lambda *each: ended.append(each))
    file = scratch.make("engine-0") / "slots"

    async def grown(size: int) -> list[str]:
        file.write_bytes(os.urandom(size))
        await one.look()
        return [row.event for row in caplog.records]

    assert await grown(2 * MIB) == []
    assert await grown(4 * MIB - 65536) == ["scratch_nearly_full"]
    assert await grown(4 * MIB - 4096) == ["scratch_nearly_full"]
    assert ended == []
    assert await grown(5 * MIB) == ["scratch_nearly_full", "engine_abuse"]
    await one.look()
    ((engine, reason),) = ended
    assert engine == "engine-0"
    assert "limits.scratch_bytes" in reason
    watched[:] = [Watched("engine-0", "m", os.getppid())]  # started anew, and at it again
    await one.look()
    assert len(ended) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_memory_without_a_cgroup_is_looked_after(scratch: Scratch, run_program: Any) -> None:
    code = "import os, time\nx = os.urandom(1 << 20) * 64\nprint('ready')\ntime.sleep(60)\n"
    process, ended = run_program(code), list[tuple[str, str]]()
    watched = [Watched("engine-0", "m", process.pid)]
    await watchman(watched, scratch, EngineLimits(memory_bytes=256 * MIB), lambda *each: ended.append(each)).look()
    assert ended == []
    await watchman(watched, scratch, EngineLimits(memory_bytes=32 * MIB), lambda *each: ended.append(each)).look()
    assert [engine for engine, _ in ended] == ["engine-0"]


async def test_engines_without_limits_are_not_looked_at(scratch: Scratch) -> None:
    def never(engine: str, reason: str) -> None:
        raise AssertionError(reason)

    await watchman([Watched("engine-0", "m", os.getpid())], scratch, EngineLimits(cpu_cores=1), never).look()
