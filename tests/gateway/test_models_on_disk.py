"""Models that are on a disk, on their way or wanted: lists, requests, and llama.cpp's router mode."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from gateway.modelevents import changes
from gateway.routermode import Download, Known, Status
from schemas.node import Capabilities

CONFIG = {
    "architecture": "llama",
    "parameters": 7_000_000_000,
    "quantisation": "Q4_K",
    "context_tokens": 4096,
    "tensor_bytes": 4_000_000_000,
    "chat_template": True,
    "capabilities": ["chat", "completion"],
}
OFFER = {"model": "new", "cost": 1, "devices": ["cpu:0"]}


async def put(worker: Any, model: str, state: str | None, node: str = "n1", **more: Any) -> None:
    """Write a copy's record as a node does; None takes it away."""
    kv = await worker.nc.jetstream().key_value("puna_copies")
    if state is None:
        await kv.delete(f"{model}.{node}")
        return
    value = {"model": model, "node": node, "state": state, "since": 1.0, "source": "hf://a/b", **more}
    await kv.put(f"{model}.{node}", json.dumps(value).encode())


async def tasks_of(worker: Any) -> list[tuple[str, dict[str, Any]]]:
    """What is in the tasks stream."""
    js = worker.nc.jetstream()
    count = (await js.stream_info("PUNA_TASKS")).state.messages
    stored = [await js.get_msg("PUNA_TASKS", number) for number in range(1, count + 1)]
    return [(str(one.subject), json.loads(one.data or b"")) for one in stored]


def moving(done: int) -> dict[str, Any]:
    about = {"bytes_total": 100, "bytes_done": done, "eta_s": 7.0, "speed_bytes_per_s": 5.0, "phase": "downloading"}
    return {"progress": about}


async def test_a_download_is_listed_with_its_progress_and_a_request_hears_of_it(gateway, worker) -> None:
    await put(worker, "new", "Downloading", **moving(40))
    await gateway.until_seen("new")
    listed = {one["id"]: one for one in (await gateway.http.get("/v1/models")).json()["data"]}
    assert (listed["new"]["state"], listed["new"]["progress"]) == ("downloading", 0.4)
    assert listed["new"]["copies"]["coming"] == 1
    refused = await gateway.ask(model="new")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
    assert refused.json()["error"]["code"] == "model_loading"
    assert refused.json()["loading"]["progress"] == 0.4


async def test_a_model_on_a_disk_tells_what_its_file_says_and_where_it_is(gateway, worker) -> None:
    await put(worker, "new", "Ready", config=CONFIG, size_bytes=4_100_000_000)
    await gateway.until_seen("new")
    one = (await gateway.http.get("/v1/models/new")).json()
    assert (one["quantisation"], one["parameters"], one["context"]) == ("Q4_K", 7_000_000_000, 4096)
    assert (one["capabilities"], one["chat_template"]) == (["chat", "completion"], True)
    assert [(each["node"], each["state"]) for each in one["copies"]["each"]] == [("n1", "Ready")]
    assert one["record"] is None


async def test_a_request_right_after_the_task_was_done_is_held_until_the_node_offers_the_model(gateway, worker) -> None:
    await put(worker, "new", "Downloading", **moving(99))
    await gateway.until(lambda page: any(one["id"] == "new" for one in page["data"]), "/v1/models")
    await put(worker, "new", "Ready")
    await gateway.until(lambda page: page.get("state") == "unloaded", "/v1/models/new")
    demands = await worker.nc.subscribe("puna.demand.new")
    await worker.nc.flush()
    asked = gateway.ask(model="new", stream=True)  # no heartbeat tells of the model yet
    assert json.loads((await demands.next_msg(5)).data)["kind"] == "cold"
    worker.offers = [OFFER]
    await worker.beat()
    late = await start_engine(worker)
    await late.answer("hello")
    assert "hello" in (await asked).text


async def start_engine(worker: Any) -> Any:
    """The node has started an engine of it, and takes the request."""
    about = {"engine": "e2", "model": "new", "devices": ["cpu:0"], "state": "ready", "slots_total": 1, "since": 1.0}
    worker.engines = [about]
    await worker.beat()
    worker.model = "new"
    return await worker.take()


async def test_a_request_that_is_held_hears_when_its_model_is_deleted_meanwhile(gateway, worker) -> None:
    await put(worker, "new", "Ready")
    await gateway.until_seen("new")
    asked = gateway.ask(model="new")
    await gateway.until(lambda page: True, "/v1/queue")
    await put(worker, "new", None)
    assert (await asked).status_code == 503


async def test_unknown_stays_404(gateway, worker) -> None:
    assert (await gateway.ask(model="never")).status_code == 404
    assert (await gateway.http.get("/v1/models/never")).status_code == 404


# -- llama.cpp's router mode -------------------------------------------------------------------------------------------
async def test_a_model_is_fetched_and_deleted_as_by_llama_cpp(gateway, worker) -> None:
    fetched = await gateway.http.post("/models", json={"model": "ggml-org/tiny-GGUF:Q4_K_M"})
    assert (fetched.status_code, fetched.json()["success"]) == (200, True)
    [(subject, body)] = await tasks_of(worker)
    assert subject == "puna.task.download"
    assert body == {"model": "ggml-org/tiny-GGUF:Q4_K_M", "source": "hf://ggml-org/tiny-GGUF:Q4_K_M"}
    await put(worker, "new", "Downloading", **moving(40))
    await gateway.until_seen("new")
    listed = {one["id"]: one for one in (await gateway.http.get("/models")).json()["data"]}
    assert listed["new"]["status"]["value"] == "downloading"
    assert listed["new"]["status"]["progress"] == {"hf://a/b": {"done": 40, "total": 100}}
    assert listed["new"]["can_remove"] and not listed["m"]["can_remove"]
    for answer in (
        await gateway.http.delete("/models", params={"model": "new"}),
        await gateway.http.delete("/models/new"),
        await gateway.http.post("/models/unload", json={"model": "new"}),
    ):
        assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert [subject for subject, _ in await tasks_of(worker)][1:] == ["puna.task.delete"] * 3


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "m"}, 400, "source"),
        ({"sorce": "x"}, 400, None),
        ({"model": "a/b", "source": "file:///etc/passwd"}, 403, "source"),
        ({"model": "a/b", "source": "http://10.0.0.1/x"}, 403, "source"),
        ({"model": "a/b", "token_ref": "env:HOME"}, 400, "token_ref"),
        ({"model": "a/../b"}, 400, "source"),
    ],
)
async def test_clients_fetch_from_the_hub_only_unless_an_operator_says_more(
    gateway, worker, body, status, param
) -> None:
    answer = await gateway.http.post("/models", json=body)
    assert answer.status_code == status, answer.text
    assert param is None or answer.json()["error"]["param"] == param
    assert await tasks_of(worker) == []


async def test_clients_that_may_not_fetch_may_not_delete(start_gateway, start_worker) -> None:
    gateway = await start_gateway(fetch_schemes=[])
    worker = await start_worker()
    await put(worker, "new", "Ready")
    await gateway.until_seen("new")
    assert (await gateway.http.post("/models", json={"model": "a/b"})).status_code == 403
    assert (await gateway.http.delete("/models", params={"model": "new"})).status_code == 403


async def test_what_is_not_there_or_a_nodes_own_is_not_deleted(gateway, worker) -> None:
    assert (await gateway.http.delete("/models", params={"model": "never"})).status_code == 404
    own = await gateway.http.delete("/models", params={"model": "m"})
    assert (own.status_code, "settings of n1" in own.json()["error"]["message"]) == (400, True)
    assert (await gateway.http.delete("/models")).status_code == 400


async def test_keys_are_asked_for_before_anything_is_fetched_or_deleted(start_gateway) -> None:
    gateway = await start_gateway(keys=("a:secret",))
    assert (await gateway.http.post("/models", json={"model": "a/b"})).status_code == 401
    assert (await gateway.http.delete("/models", params={"model": "m"})).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/models", {"model": "a/b"}),
        ("POST", "/models/load", {"model": "m"}),
        ("POST", "/models/unload", {"model": "m"}),
        ("DELETE", "/models?model=m", None),
        ("DELETE", "/v1/models/m", None),
    ],
)
async def test_a_key_that_asks_models_does_not_manage_them(start_gateway, method: str, path: str, body: Any) -> None:
    gateway = await start_gateway(keys=("team:one", "ops:two"), admin_keys="ops")
    by_team = await gateway.http.request(method, path, json=body, headers={"x-api-key": "one"})
    assert (by_team.status_code, by_team.json()["error"]["code"]) == (403, "not_allowed")
    assert "admin_keys" in by_team.json()["error"]["message"]
    by_ops = await gateway.http.request(method, path, json=body, headers={"x-api-key": "two"})
    assert by_ops.status_code != 403, by_ops.text
    assert (await gateway.http.get("/models", headers={"x-api-key": "one"})).status_code == 200


def known(status: Status) -> dict[str, Known]:
    return {"m": Known("m", status, (), ("n1",), 0, 0, 0, Capabilities())}


def fetching(done: int) -> dict[str, Known]:
    return known(Status("downloading", download=Download("hf://a/b", done, 100)))


def test_a_download_is_told_by_the_events_of_llama_cpp() -> None:
    steps = [{}, fetching(0), fetching(50), known(Status("unloaded"))]
    told = [[event["event"] for event in changes(a, b)] for a, b in pairwise(steps)]
    assert told == [
        ["models_reload", "model_status", "download_progress"],
        ["download_progress"],
        ["download_finished", "model_status"],
    ]
    failed = [event["event"] for event in changes(fetching(50), known(Status("unloaded", failed=True)))]
    assert failed == ["download_failed", "model_status"]


async def test_the_page_of_a_model_tells_all_that_its_file_does_and_the_list_what_it_takes(gateway, worker) -> None:
    config = CONFIG | {"memory_bytes": 5_000_000_000, "api_capabilities": ["OPENAI_V1_CHAT_COMPLETIONS"], "layers": 32}
    await put(worker, "new", "Ready", config=config)
    await gateway.until_seen("new")
    assert (await gateway.http.get("/v1/models/new")).json()["file"] == config
    listed = {one["id"]: one for one in (await gateway.http.get("/v1/models")).json()["data"]}
    assert listed["new"]["memory_bytes"] == 5_000_000_000
    assert listed["new"]["api_capabilities"] == ["OPENAI_V1_CHAT_COMPLETIONS"]
    assert "file" not in listed["new"]
