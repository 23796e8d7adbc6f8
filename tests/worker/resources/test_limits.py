"""Limits: what is enforced by what, and who goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.config import ConfigError
from schemas.node import EngineUsage
from worker.cgroup import CgroupLimits, Ground
from worker.limits import EngineLimits, LimitSettings, enforcement, excess, notices
from worker.settings import settings_from

CGROUPS = Ground(Path("/cgroup"), frozenset(("cpu", "memory", "io")))
NONE = Ground(reason="cgroup v2 is not delegated to this process")
GIB = 1 << 30


def test_a_model_says_otherwise_only_where_it_says_something(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "limits: {memory_bytes: 1073741824, nice: 5}\n"
        "models: [{model: m, path: /m, limits: {nice: 0, cpu_cores: 2.5}}, {model: n, path: /n}]\n"
    )
    settings = settings_from(config, {}, {})
    assert settings.limits_of("m") == EngineLimits(memory_bytes=GIB, nice=0, cpu_cores=2.5)
    assert settings.limits_of("n") == settings.limits_of("unknown") == EngineLimits(memory_bytes=GIB, nice=5)
    assert (settings.engine_cores("m"), settings.engine_cores("n")) == (3, None)


@pytest.mark.parametrize(
    "text", ["limits: {cpu_cores: 0}", "limits: {memory_bytes: 5}", "limits: {nice: -1}", "reserved: {mem: lots}"]
)
def test_a_limit_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError):
        settings_from(config, {}, {})


def test_a_model_may_not_set_what_is_the_nodes() -> None:
    with pytest.raises(ValidationError):
        EngineLimits.model_validate({"scratch_dir": "/tmp"})


def test_a_cgroup_enforces_everything() -> None:
    limits = EngineLimits(cpu_cores=2, memory_bytes=GIB, swap_bytes=0, read_bytes_per_s=1 << 20, nice=3)
    how = enforcement(limits, ["cuda:0"], CGROUPS, core_dumps=False)
    assert how.cgroup == CgroupLimits(2, GIB, 0, 1 << 20, None)
    assert (dict(how.rlimits), how.nice, how.not_enforced) == ({"core": 0}, 3, ())


def test_without_a_cgroup_a_cpu_engine_is_held_by_what_it_allocates() -> None:
    limits = EngineLimits(cpu_cores=2, memory_bytes=GIB, open_files=1024)
    how = enforcement(limits, ["cpu:0"], NONE, core_dumps=True)
    assert dict(how.rlimits) == {"nofile": 1024, "data": GIB}
    assert (how.cgroup, how.not_enforced) == (None, ("cpu_cores",))


def test_without_a_cgroup_an_engine_on_a_gpu_has_no_limit_of_memory_and_that_is_told() -> None:
    how = enforcement(EngineLimits(memory_bytes=GIB), ["cuda:0"], NONE, core_dumps=False)
    assert (dict(how.rlimits), how.not_enforced) == ({"core": 0}, ("memory_bytes",))


def usage(source: str = "processes", **figures: int) -> EngineUsage:
    return EngineUsage.model_validate({"sampled_at": 0, "source": source} | figures)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"memory_anonymous_bytes": 109}, None),
        ({"memory_anonymous_bytes": 111}, "limits.memory_bytes"),
        ({"memory_anonymous_bytes": 60, "swap_bytes": 60}, "limits.memory_bytes"),
        ({"memory_bytes": 10_000}, None),
        ({"source": "cgroup", "memory_anonymous_bytes": 200}, None),
        ({"scratch_bytes": 110}, None),
        ({"source": "cgroup", "scratch_bytes": 111}, "limits.scratch_bytes"),
        ({}, None),
    ],
)
def test_who_is_a_tenth_over_has_to_go(figures: dict[str, int], told: str | None) -> None:
    mib = 1 << 20
    scaled = {key: value * mib if isinstance(value, int) else value for key, value in figures.items()}
    reason = excess(usage(**scaled), EngineLimits(memory_bytes=100 * mib, scratch_bytes=100 * mib))
    assert (reason is None) == (told is None)
    assert (told or "") in (reason or "")


def test_without_a_limit_nobody_has_to_go() -> None:
    assert excess(usage(memory_anonymous_bytes=1 << 50, scratch_bytes=1 << 50), EngineLimits()) is None


def test_a_person_is_told_what_is_not_enforced() -> None:
    assert notices(CGROUPS, LimitSettings(memory_bytes=GIB, cpu_cores=1)) == []
    assert notices(NONE, LimitSettings(cgroup_v2=False)) == []
    first, second = notices(NONE, LimitSettings(), [EngineLimits(cpu_cores=1, memory_bytes=GIB)])
    assert "not delegated" in first
    assert "limits.cpu_cores, limits.memory_bytes" in second
