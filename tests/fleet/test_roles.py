"""A fleet whose NATS server has the users of deploy/nats/roles.conf: each role does its work, and no more than that."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import nats
import pytest
from nats.aio.client import Client

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
ROLES = ROOT / "deploy" / "nats" / "roles.conf"
WAIT_S = 30
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def generator(*arguments: str) -> str:
    return subprocess.check_output([sys.executable, ROLES.with_name("generate_roles.py"), *arguments], text=True)


def test_the_file_of_roles_is_what_the_programs_need() -> None:
    program = "import sys; sys.path[:0] = ['deploy/nats']; from generate_roles import page; print(page(), end='')"
    wanted = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert ROLES.read_text() == wanted, "run: python deploy/nats/generate_roles.py"


def test_a_node_may_have_a_user_of_its_own_and_a_fleet_another_prefix() -> None:
    told = generator("--node", "gpu-1", "--node", "gpu.2", "--prefix", "lab")
    assert "user: worker-gpu-1\n" in told
    assert "password: $WORKER_GPU_2_PASSWORD\n" in told
    assert '"$KV.lab_nodes.gpu=2E2"' in told
    assert "puna." not in told.partition("authorization {")[2]


@pytest.fixture
def server(new_nats_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for role in ("WORKER", "GATEWAY", "ADMIN", "CLIENT"):
        monkeypatch.setenv(f"{role}_PASSWORD", '"p"')
    return new_nats_server(ROLES.read_text())


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Factory: a service as the role; what it says once it can be used."""
    started: list[subprocess.Popen[bytes]] = []
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}

    def begin(role: str, *arguments: str) -> dict[str, Any]:
        url = server.url.replace("//", f"//{role}:p@")
        command = [sys.executable, "-m", role, "--nats", url, *arguments]
        with (tmp_path / f"{role}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environ)
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / f"{role}.log").read_text()
        return json.loads(line)

    yield begin
    for process in started:
        process.terminate()
    for process in started:
        process.wait(WAIT_S)


@pytest.fixture
async def connect(server: Any) -> AsyncIterator[Callable[..., Any]]:
    """Factory: plain nats-py as the role; `errors` gets what the server refuses."""
    connected: list[Client] = []

    async def make(role: str, errors: list[str], inbox: str = "_INBOX") -> Client:
        async def refused(error: Exception) -> None:
            errors.append(str(error).lower())

        client = await nats.connect(server.url, user=role, password="p", inbox_prefix=inbox.encode(), error_cb=refused)
        connected.append(client)
        return client

    yield make
    for client in connected:
        await client.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.02)


async def test_each_role_does_its_work_and_is_refused_the_work_of_others(
    server: Any, start: Any, connect: Any, tmp_path: Path, write_model: Any
) -> None:
    config = tmp_path / "worker.yaml"
    model = {"model": "m", "path": str(write_model(tmp_path / "m.gguf")), "slots": 2}
    config.write_text(json.dumps({"models": [model], "engine": {"path": str(ENGINE)}}))
    state = ["--state-dir", str(tmp_path / "state"), "--http", "127.0.0.1:0", "--log-format", "json"]
    await asyncio.to_thread(start, "worker", "--config", str(config), "--node", "n1", *state)
    gateway = await asyncio.to_thread(start, "gateway", "--listen", "127.0.0.1:0")
    async with httpx2.AsyncClient(base_url=gateway["url"], timeout=WAIT_S, trust_env=False) as http:
        assert (await http.post("/v1/chat/completions", json=CHAT)).json()["choices"]
        assert (await http.get("/props", params={"model": "m"})).status_code == 200

    errors: list[str] = []
    client = await connect("client", errors, "_INBOX.client")
    answer = await client.request("puna.infer.chat.m", json.dumps(CHAT).encode(), timeout=WAIT_S)
    assert json.loads(answer.data)["choices"]
    in_line = await client.subscribe(inbox := client.new_inbox())
    headers = {"Puna-Op": "chat", "Puna-Reply": inbox}
    await client.publish("puna.queue.interactive.m", json.dumps(CHAT).encode(), headers=headers)
    assert json.loads((await in_line.next_msg(WAIT_S)).data)["choices"]
    admin = await connect("admin", errors)
    pong = await admin.request("puna.node.n1.ping", b"", timeout=WAIT_S)
    assert json.loads(pong.data)["node"] == "n1"
    assert (await (await admin.jetstream().key_value("puna_nodes")).get("n1")).value
    assert (errors, "Violation" in server.log_text) == ([], False), server.log_text[-2000:]

    for subject in ("puna.node.n1.drain", "puna.task.delete", "$KV.puna_models.m", "$JS.API.STREAM.DELETE.PUNA_QUEUE"):
        await client.publish(subject, b"{}")
    await client.subscribe("_INBOX.>")
    await client.subscribe("puna.reply.>")
    worker = await connect("worker", errors)
    await worker.publish("puna.task.delete", b"{}")
    await until(lambda: len(errors) == 7)
