"""A worker's probes and metrics of its models' folder, asked over HTTP."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest


async def get(worker: Any, path: str) -> tuple[int, str]:
    async with httpx2.AsyncClient(base_url=worker.http, timeout=5, trust_env=False) as http:
        answer = await http.get(path)
        return answer.status_code, answer.text


async def test_a_models_folder_that_went_away_is_told_and_its_return_too(
    new_worker: Any, wait_until: Any, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    worker = await new_worker(store={"models_root_dir": str(root)})

    async def ready() -> Any:
        return (await get(worker, "/readyz"))[0] == 200

    async def told() -> Any:
        return "puna_worker_store_bytes{" in (await get(worker, "/metrics"))[1]

    assert await wait_until(ready, 20)
    assert await wait_until(told, 20)
    names = {check["name"] for check in json.loads((await get(worker, "/readyz"))[1])["checks"]}
    assert names == {"nats", "jetstream", "store", "models_root", "disk", "draining", "engines"}
    root.rename(tmp_path / "away")

    async def unwell() -> Any:
        status, body = await get(worker, "/healthz")
        return status == 503 and json.loads(body)["checks"]

    check, _ = await wait_until(unwell, 30)
    assert check["name"] == "models_root"
    assert "not there any more" in check["reason"]
    assert "models_root_dir" in check["remedy"]
    assert (await get(worker, "/readyz"))[0] == 503
    assert (await get(worker, "/livez"))[0] == 200
    (tmp_path / "away").rename(root)
    assert await wait_until(ready, 30)


async def test_the_service_manager_hears_of_the_start_of_life_and_of_the_end(
    new_worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        worker = await new_worker()
        assert [manager.recv(100), manager.recv(100), manager.recv(100)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        worker.terminate()
        while (told := manager.recv(100)) == b"WATCHDOG=1":
            pass
        assert told.startswith(b"STOPPING=1\nEXTEND_TIMEOUT_USEC=")
        assert await worker.ended() == 0
