"""A whole worker: what its engine takes, its limits and its scratch folder, as heartbeat and `/metrics` tell them."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")


async def fetch(worker: Any, path: str) -> bytes:
    def get() -> bytes:
        with urllib.request.urlopen(f"{worker.http}{path}", timeout=5) as answer:
            return answer.read()

    return await asyncio.to_thread(get)


async def inventory(worker: Any) -> dict[str, Any]:
    return orjson.loads(await fetch(worker, "/v1/node/inventory"))


async def test_usage_and_shares_are_in_the_heartbeat_and_in_the_metrics(new_worker: Any, wait_until: Any) -> None:
    often = {"interval_s": 0.2}
    worker = await new_worker(
        statistics={"node": often, "engine": often, "process": often},
        compat_metrics=True,
        limits={"scratch_bytes": 1 << 30},
    )

    async def told() -> dict[str, Any] | None:
        found = await inventory(worker)
        usage = found["engines"][0]["usage"]
        return found if usage and usage["cpu_percent"] is not None else None

    found = await wait_until(told)
    usage = found["engines"][0]["usage"]
    assert usage["memory_bytes"] > 1 << 20
    assert usage["processes"] >= 1
    assert usage["scratch_bytes"] is not None
    assert found["usage"]["memory_total_bytes"] > found["usage"]["memory_available_bytes"]
    assert "state" in {disk["place"] for disk in found["usage"]["disks"]}
    assert {"cpu", "mem"} <= set(found["shares"])
    text = (await fetch(worker, "/metrics")).decode()
    for name in ("puna_worker_engine_cpu_user_seconds_total{", "puna_worker_share{", "puna_worker_loads_total{"):
        assert name in text, name
    for name in ("container_utilization", "device_utilization", "process_utilization", "stat_task_success_count_total"):
        assert f"backendai_{name}{{" in text, name
    assert 'backendai_agent_heartbeat{agent_id="n1"}' in text


async def test_an_engine_lives_within_its_limits_and_its_folder_goes_with_it(
    new_worker: Any, tmp_path: Path, wait_until: Any
) -> None:
    worker = await new_worker(limits={"nice": 7, "open_files": 300, "memory_bytes": 1 << 30})
    (engine,) = (await inventory(worker))["engines"]
    process = psutil.Process(engine["pid"])
    scratch = tmp_path / "state-n1" / "scratch" / engine["engine"]
    assert process.nice() == 7 + os.getpriority(os.PRIO_PROCESS, 0)
    assert process.rlimit(resource.RLIMIT_NOFILE) == (300, 300)
    assert process.rlimit(resource.RLIMIT_CORE) == (0, 0)
    assert process.rlimit(resource.RLIMIT_DATA)[0] in (1 << 30, resource.RLIM_INFINITY)  # with a cgroup: none
    assert (process.cwd(), process.environ()["TMPDIR"]) == (str(scratch), str(scratch))
    worker.terminate()
    await worker.ended()
    assert not scratch.exists()


async def test_an_engine_that_fills_its_folder_is_ended_and_started_anew(
    new_worker: Any, tmp_path: Path, wait_until: Any
) -> None:
    worker = await new_worker(limits={"scratch_bytes": 1 << 20, "scratch_check_s": 0.2})
    (before,) = (await inventory(worker))["engines"]
    scratch = tmp_path / "state-n1" / "scratch" / before["engine"]
    (scratch / "saved").write_bytes(os.urandom(2 << 20))

    async def anew() -> bool:
        (engine,) = (await inventory(worker))["engines"]
        return engine["state"] == "ready" and engine["pid"] != before["pid"]

    await wait_until(anew)
    assert [line["engine"] for line in worker.lines("engine_abuse")] == [before["engine"]]
    stopped = [line for line in worker.lines("engine_stopped") if line["engine"] == before["engine"]]
    assert stopped[0]["reason_code"] == "abuse"
    assert "scratch" in stopped[0]["reason"]
    assert not (scratch / "saved").exists()
    assert b"puna_worker_abuses_total{" in await fetch(worker, "/metrics")
