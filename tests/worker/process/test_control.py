"""The control verbs of a node as an operator with plain NATS sees them."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

MODEL = "org/fake-1.5:Q4"
GROUP = "puna.infer.chat.org=2Ffake-1=2E5=3AQ4"
VERBS = {"ping", "status", "inventory", "config", "logs", "cancel", "restart", "drain"}
VERBS |= {"load", "unload", "explain", "engine-get", "models", "check", "files", "health"}
LONG = {"chunks": 10_000}


@pytest.fixture
async def client(nats_server: Any) -> AsyncIterator[Client]:
    """A plain nats-py client."""
    connection = await nats.connect(nats_server.url)
    yield connection
    await connection.close()


@pytest.fixture
def ask(client: Client) -> Callable[..., Any]:
    """`await ask("logs", {"lines": 5})` → the answer as JSON, of node n1."""

    async def asked(verb: str, body: Any = None, node: str = "n1") -> dict[str, Any]:
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answer = await client.request(f"puna.node.{node}.{verb}", payload, timeout=3)
        found = json.loads(answer.data)
        if answer.headers:
            found["status"] = answer.headers["Nats-Service-Error-Code"]
        return found

    return asked


async def test_each_worker_is_an_instance_of_one_service(new_worker, client) -> None:
    await new_worker("n1")
    await new_worker("n.2")
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish("$SRV.PING.puna-worker", b"", reply=inbox)
    pings = [ServicePing(**json.loads((await answers.next_msg(timeout=2)).data)) for _ in range(2)]
    assert {ping.metadata["node"] for ping in pings} == {"n1", "n.2"}
    assert len({ping.id for ping in pings}) == 2
    first = next(ping for ping in pings if ping.metadata["node"] == "n.2")
    info = ServiceInfo(**json.loads((await client.request(f"$SRV.INFO.puna-worker.{first.id}", timeout=2)).data))
    assert {endpoint["name"] for endpoint in info.endpoints} == VERBS  # type: ignore[index]
    assert {endpoint["subject"] for endpoint in info.endpoints} == {f"puna.node.n=2E2.{verb}" for verb in VERBS}  # type: ignore[index]


async def test_the_figures_move_with_what_is_asked(new_worker, client, ask) -> None:
    await new_worker()

    async def figures() -> dict[str, tuple[int, int, str]]:
        stats = ServiceStats(**json.loads((await client.request("$SRV.STATS.puna-worker", timeout=2)).data))
        rows = [json.loads(json.dumps(row, default=vars)) for row in stats.endpoints]
        return {row["name"]: (row["num_requests"], row["num_errors"], row["last_error"]) for row in rows}

    assert (await figures())["ping"] == (0, 0, "")
    await ask("ping")
    await ask("ping", {"surprise": 1})
    await ask("logs")
    after = await figures()
    assert after["ping"] == (2, 1, "400:unknown_field")
    assert after["logs"][:2] == (1, 0)


async def test_verbs_that_tell_answer_at_once(new_worker, ask) -> None:
    worker = await new_worker()
    ping, status, inventory = await ask("ping"), await ask("status", {}), await ask("inventory")
    assert (ping["node"], ping["boot_id"]) == ("n1", inventory["boot_id"])
    assert set(status) == {"node", "engines", "pressure", "draining"}
    assert status["engines"][0]["model"] == MODEL
    assert (inventory["http"], inventory["pid"]) == (worker.http, worker.process.pid)


async def test_models_and_health_are_told_over_nats_too(new_worker, ask) -> None:
    await new_worker()
    listed = await ask("models")
    (one,) = listed["data"]
    assert (listed["node"], one["id"], one["state"], one["slots_total"]) == ("n1", MODEL, "ready", 2)
    checked = await ask("check", {"model": MODEL})
    assert (checked["node"], checked["state"], checked["copy"]) == ("n1", "ready", None)
    assert (await ask("check", {"model": "nobody"}))["status"] == "404"
    assert (await ask("files", {"model": MODEL}))["status"] == "404", "its file is not in the store"
    health = await ask("health")
    assert {page: health[page]["status"] for page in ("livez", "healthz")} == {"livez": "ok", "healthz": "ok"}
    assert {check["name"] for check in health["readyz"]["checks"]} >= {"nats", "engines", "disk"}


async def test_a_verb_that_awaits_is_counted_when_it_has_ended(new_worker, ask) -> None:
    worker = await new_worker()
    engine = (await ask("status"))["engines"][0]["engine"]
    assert "error" not in await ask("engine-get", {"engine": engine, "path": "/props"})
    assert (await ask("engine-get", {"engine": "engine-99", "path": "/props"}))["status"] == "404"

    def text() -> str:
        with urllib.request.urlopen(f"{worker.http}/metrics", timeout=5) as answer:
            return answer.read().decode()

    found = await asyncio.to_thread(text)
    assert 'puna_worker_control_requests_total{verb="engine-get"} 2.0' in found
    assert 'puna_worker_control_failures_total{code="not_found",verb="engine-get"} 1.0' in found


async def test_config_shows_the_settings_and_no_secret(new_worker, ask) -> None:
    secret = "s3cr3t-4711"
    await new_worker(http={"api_keys": [f"me:{secret}"]}, slots=3, labels={"rack": "7"})
    found = await ask("config")
    config = found["config"]
    assert (config["labels"], config["models"][0]["slots"], config["drain_s"]) == ({"rack": "7"}, 3, 30.0)
    assert config["memory_check"] is None
    assert secret not in json.dumps(found)


async def test_logs_are_the_engines_last_lines(new_worker, ask) -> None:
    await new_worker(flags={"say": "loading so and so"})
    both = await ask("logs", {"model": MODEL, "lines": 1000})
    assert any("loading so and so" in line for line in both["lines"])
    assert (both["model"], both["left_out"], both["withheld_total"]) == (MODEL, 0, 0)
    assert (await ask("logs", {"lines": 1}))["lines"] == both["lines"][-1:], "one engine needs no name"


@pytest.mark.parametrize(
    ("verb", "body", "status", "code", "param"),
    [
        ("logs", {"lines": 1001}, "400", "invalid_request", "lines"),
        ("logs", {"lines": 0}, "400", "invalid_request", "lines"),
        ("logs", {"lines": "many"}, "400", "invalid_request", "lines"),
        ("logs", {"line": 5}, "400", "unknown_field", "line"),
        ("logs", {"model": "nobody"}, "404", "model_not_found", "model"),
        ("restart", None, "400", "invalid_request", "model"),
        ("restart", {"model": 5}, "400", "invalid_request", "model"),
        ("restart", {"model": "nobody"}, "404", "model_not_found", "model"),
        ("drain", {"now": True}, "400", "unknown_field", "now"),
        ("config", b"[1]", "400", "invalid_json", None),
        ("status", b"{" * 4000, "400", "invalid_json", None),
        ("ping", b" " * 5000, "400", "invalid_request", None),
        ("cancel", b"", "400", "invalid_request", "request"),
        ("cancel", b"not an id", "400", "invalid_request", "request"),
        ("cancel", b"\xff\xfe", "400", "invalid_request", "request"),
        ("cancel", {"request": "r1", "epoch": "two"}, "400", "invalid_request", "epoch"),
    ],
)
async def test_a_wrong_body_is_refused_by_the_name_of_its_field(lone, ask, verb, body, status, code, param) -> None:
    found = await ask(verb, body)
    assert (found["status"], found["error"]["code"], found["error"]["param"]) == (status, code, param)
    assert len(found["error"]["message"]) > 10


@pytest.fixture
async def lone(new_worker: Any) -> Any:
    """A worker whose engine need not be ready."""
    return await new_worker(ready=False)


async def test_cancel_ends_a_request_by_its_id(new_worker, client, ask, wait_until) -> None:
    worker = await new_worker(flags=LONG)
    body = json.dumps({"stream": True, "messages": [{"role": "user", "content": "count"}]}).encode()
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(GROUP, body, reply=inbox, headers={"Puna-Request": "r7"})
    await answers.next_msg(timeout=5)
    assert await ask("cancel", {"request": "r7", "epoch": 9}) == {"request": "r7", "cancelled": False}
    assert await ask("cancel", b" r7\n") == {"request": "r7", "cancelled": True}
    (line,) = await wait_until(lambda: worker.lines("request"))
    assert line["outcome"] == "cancelled"
    assert await ask("cancel", b"r7") == {"request": "r7", "cancelled": False}


async def test_restart_gives_the_engine_a_new_process(new_worker, ask, wait_until) -> None:
    worker = await new_worker(flags={"slow-start": 0.5})
    (before,) = (await ask("status"))["engines"]
    first, second = await asyncio.gather(ask("restart", {"model": MODEL}), ask("restart", {"model": MODEL}))
    assert {first["begun"], second["begun"]} == {True, False}
    await wait_until(lambda: worker.lines("engine_restarted"))
    (after,) = (await ask("status"))["engines"]
    assert (after["state"], after["pid"] != before["pid"]) == ("ready", True)
    assert len(worker.lines("engine_ready")) == 2, "two wishes, one restart"
    assert (await ask("restart", {"model": MODEL}))["begun"]


async def test_drain_answers_first_lets_requests_end_and_ends_the_worker(new_worker, client, ask, wait_until) -> None:
    worker = await new_worker(flags={"chunks": 40})
    body = json.dumps({"stream": True, "messages": [{"role": "user", "content": "count"}]}).encode()
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(GROUP, body, reply=inbox)
    parts = [(await answers.next_msg(timeout=5)).data]
    assert await ask("drain") == {"node": "n1", "draining": True, "active": 1}
    assert (await ask("restart", {"model": MODEL}))["status"] == "503"
    while parts[-1]:
        parts.append((await answers.next_msg(timeout=5)).data)
    assert b"".join(parts).endswith(b"data: [DONE]\n\n")
    assert await worker.ended() == 0
    assert worker.lines("node_stopped")
