"""A model that was asked for and of which no disk tells: its state, and what a request for it hears."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.underway import Underway
from schemas.subjects import Names
from schemas.task import TaskRecord, derived_id

SOURCE = "https://host/m.gguf"


@dataclass(frozen=True)
class Entry:
    value: bytes
    revision: int = 1


def record(task: str = "t", state: str = "queued", **more: Any) -> TaskRecord:
    told: dict[str, Any] = {"task": task, "op": "download", "model": "new", "state": state, "created": 1, "since": 1}
    return TaskRecord.model_validate(told | more)


def entries(*records: TaskRecord, revision: int = 1) -> dict[str, Entry]:
    return {one.task: Entry(one.model_dump_json().encode(), revision) for one in records}


def message(**more: Any) -> bytes:
    return json.dumps({"model": "new", "source": SOURCE, **more}).encode()


# -- the view --------------------------------------------------------------------------------------------------------
def test_only_downloads_that_have_not_ended_count() -> None:
    view = Underway(Names())
    ended = [record(state, state) for state in ("done", "failed", "cancelled", "dead")]
    other = [record("v", "running", op="verify")]
    assert view.take(entries(record("a", "running", created=2), record("b", created=1), *ended, *other)) == {"new"}
    assert [task.task for task in view.of("new")] == ["b", "a"]
    assert view.take(entries(record("a", "done", created=2), revision=2)) == {"new"}
    assert view.of("new") == ()


def test_a_task_counts_from_when_it_is_sent_and_its_record_takes_its_place() -> None:
    view = Underway(Names())
    assert view.hear("puna.task.download.n7", message(id="t")) == {"new"}
    assert (view.of("new")[0].node, view.unheard) == ("n7", {"t"})
    view.take(entries(record("t", "running", node="n7")))
    assert [task.state for task in view.of("new")] == ["running"] and not view.unheard
    assert view.hear("puna.task.download.n7", message(id="t")) == set()


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("puna.task.download", b"{"),
        ("puna.task.download", b'{"model": "../new", "source": "a/b"}'),
        ("puna.task.delete", b'{"model": "new"}'),
        ("puna.task.fetch", message()),
        ("puna.other", message()),
    ],
)
def test_what_is_no_download_counts_for_nothing(subject: str, payload: bytes) -> None:
    view = Underway(Names())
    assert view.hear(subject, payload) == set() and not view.unheard


def test_what_lies_in_the_stream_counts_and_what_was_taken_out_does_not() -> None:
    view = Underway(Names())
    view.compare((), [("puna.task.download", message(id="t"), 5)])
    assert view.unheard == {"t"}
    view.compare({"t"}, [("puna.task.download", message(id="t"), 5)])
    assert view.unheard == {"t"}
    assert view.compare({"t"}, []) == {"new"}
    assert view.of("new") == ()


def test_a_message_whose_task_has_ended_counts_only_if_it_is_another_one() -> None:
    view = Underway(Names())
    view.take(entries(record("t", "done", sequence=5)))
    assert view.compare((), [("puna.task.download", message(id="t"), 5)]) == set()
    assert view.compare((), [("puna.task.download", message(id="t"), 6)]) == {"new"}


# -- a gateway -------------------------------------------------------------------------------------------------------
async def waits(gateway: Any) -> tuple[int, str, str]:
    """What a request for it hears: status, code, reason."""
    told = await gateway.ask(model="new")
    body = told.json()
    return told.status_code, body["error"]["code"], (body.get("loading") or {}).get("reason", "")


async def test_a_model_whose_task_no_node_has_taken_is_on_its_way_and_not_unknown(gateway: Any, worker: Any) -> None:
    assert (await gateway.ask(model="new")).status_code == 404
    await worker.nc.publish("puna.task.download.n7", message())
    await worker.nc.flush()
    status, code, reason = await waits(gateway)
    assert (status, code) == (503, "model_loading") and "node n7, which is not connected" in reason
    listed = {one["id"]: one for one in (await gateway.http.get("/v1/models")).json()["data"]}
    assert listed["new"]["state"] == "pending"


async def test_a_task_that_nodes_decline_or_try_again_says_why_and_when_it_has_ended_nothing(
    gateway: Any, worker: Any
) -> None:
    kv = await worker.nc.jetstream().key_value("puna_tasks")
    task = derived_id("download", json.loads(message()))
    await worker.nc.jetstream().publish("puna.task.download", message())
    told = {"reason": "n1 cannot take it: its labels do not match the selector", "next_retry_at": 5.0}
    await kv.put(task, record(task, "queued", **told).model_dump_json().encode())
    await gateway.until(lambda page: "labels" in (page.get("reason") or ""), "/v1/models/new")
    assert (await waits(gateway))[:2] == (503, "model_loading")
    await kv.put(task, record(task, "retrying", error="no connection to the host").model_dump_json().encode())
    await gateway.until(lambda page: "no connection" in (page.get("reason") or ""), "/v1/models/new")
    await kv.put(task, record(task, "dead", error="given up").model_dump_json().encode())
    await gateway.until(lambda page: "error" in page, "/v1/models/new")
    assert (await gateway.ask(model="new")).status_code == 404


async def test_a_gateway_that_comes_later_finds_what_lies_in_the_stream(
    gateway: Any, worker: Any, start_gateway: Any
) -> None:
    await worker.nc.jetstream().publish("puna.task.download.n7", message())
    later = await start_gateway()
    await later.until_seen("new")
    assert (await waits(later))[0] == 503
