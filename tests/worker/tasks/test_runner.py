"""Tasks on a real server: done once, taken over, given up, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.model import ModelRecord
from schemas.subjects import encode
from schemas.task import derived_id

pytestmark = pytest.mark.timeout(60)


async def test_a_task_typed_by_hand_is_done_once_and_then_acknowledged(site: Any, new_node: Any) -> None:
    node = await new_node()
    body = {"model": "m", "source": "org/repo:Q4_K_M"}
    await site.publish("download", body)
    record = await site.until_state(derived_id("download", body), "done")
    await site.until_empty()
    assert site.done() == ["n1 begin m", "n1 end m"]
    assert (record.node, record.epoch, record.attempts, record.model) == ("n1", 1, 1, "m")
    assert node.told == ["task_done"]


async def test_the_same_task_twice_at_once_is_one(site: Any, new_node: Any) -> None:
    await new_node("n1")
    await new_node("n2")
    for _ in range(3):
        await site.publish("download", {"model": "hold", "source": "file:///m.gguf"})
    await site.until_state(derived_id("download", {"model": "hold", "source": "file:///m.gguf"}), "running")
    await asyncio.sleep(0.3)
    site.go()
    await site.until_empty()
    assert len(site.done()) == 2, site.done()


async def test_a_second_message_of_a_task_leaves_the_queue_at_once(site: Any, new_node: Any) -> None:
    """Both come in the same moment, and only one of them can write the record."""
    body = {"model": "hold", "source": "file:///m.gguf"}
    for _ in range(3):
        await site.publish("download", body)
    await new_node("n1", ack_wait_s=120, capacity=4)
    await site.until_queued(1)
    assert site.done() == ["n1 begin hold"]
    site.go()
    await site.until_empty()


async def test_what_was_done_is_done_again_only_if_it_is_asked_for_again(site: Any, new_node: Any) -> None:
    await new_node()
    body = {"model": "m", "source": "file:///m.gguf"}
    task = derived_id("download", body)
    await site.publish("download", body)
    await site.until_state(task, "done")
    await site.publish("download", body)
    await site.until_empty()
    assert (await site.until_state(task, "done")).epoch == 2
    await site.publish("download", body | {"id": "mine"})
    await site.until_state("mine", "done")
    count = len(site.done())
    await site.publish("download", body | {"id": "mine"})
    await site.until_empty()
    assert len(site.done()) == count


async def test_an_id_that_is_in_use_is_refused_and_the_task_that_has_it_stays(site: Any, new_node: Any) -> None:
    await new_node()
    await site.download("m")
    await site.until_state("t-m", "done")
    await site.publish("delete", {"model": "m", "id": "t-m"})
    await site.until_empty()
    assert [letter.code for letter in await site.letters()] == ["id_in_use"]
    assert (await site.record("t-m")).op == "download"


@pytest.mark.parametrize(
    ("op", "body", "says"),
    [
        ("download", b"{", "JSON"),
        ("download", b'{"model":"../m","source":"org/repo"}', "model"),
        ("download", b'{"model":"m","source":"org/repo","token":"hf_secret"}', "token"),
        ("download", b'{"model":"m","source":"org/repo","token_ref":"hf_secret"}', "token_ref"),
        ("download", b'{"model":"m","source":"https://me:hf_secret@host/x"}', "password"),
        ("download", b'{"model":"m","source":"https://me:hf_secret@host:badport/x"}', "URL"),
        ("download", b'{"model":"m","source":"org/repo","parameters":{"token":"hf_secret"}}', "token_ref"),
        ("fetch", b'{"model":"m"}', "none of"),
    ],
)
async def test_a_malformed_task_is_answered_in_the_dead_letters_and_blocks_nothing(
    site: Any, new_node: Any, op: str, body: bytes, says: str
) -> None:
    await new_node()
    await site.publish(op, body)
    await site.until_empty()
    (letter,) = await site.letters()
    assert says in letter.error, letter.error
    assert "hf_secret" not in letter.model_dump_json()
    if op == "download":
        record = await site.record(letter.task)
        assert record.state == "dead" and "hf_secret" not in record.model_dump_json()
    assert site.done() == []


async def test_what_fails_is_tried_five_times_and_then_lies_in_the_dead_letters(
    site: Any, new_node: Any, quick: None
) -> None:
    await new_node()
    await site.download("fail")
    record = await site.until_state("t-fail", "dead")
    await site.until_empty()
    assert site.done().count("n1 begin fail") == 5
    (letter,) = await site.letters()
    assert "no connection" in letter.error and letter.attempts == 5
    assert letter.body == {"model": "fail", "source": "file:///fail.gguf", "id": "t-fail"}
    assert "no connection" in record.error


async def test_what_can_never_be_done_is_tried_once(site: Any, new_node: Any) -> None:
    await new_node()
    await site.download("gone")
    record = await site.until_state("t-gone", "failed")
    await site.until_empty()
    assert site.done() == ["n1 begin gone"]
    assert record.error == "no such repository"
    assert len(await site.letters()) == 1


async def test_a_task_between_tries_says_why_and_when(site: Any, new_node: Any) -> None:
    await new_node()
    await site.download("fail")
    record = await site.until_state("t-fail", "retrying")
    assert record.error and record.reason == "try 1 of 5 failed" and record.next_retry_at


async def test_a_node_whose_labels_do_not_match_gives_it_back_with_the_reason(
    site: Any, new_node: Any, quick: None
) -> None:
    await new_node("n1")
    body = {"selector": {"labels": {"gpu": "a100"}}}
    await site.download("m", **body)
    record = await site.until_state("t-m", "dead")
    assert "no node could take it" in record.error and "labels" in record.error
    assert site.done() == []
    assert len(await site.letters()) == 1


async def test_a_task_comes_round_to_the_one_node_that_it_suits(site: Any, new_node: Any, quick: None) -> None:
    for number in range(8):
        labels = {"gpu": "a100"} if number == 7 else {}
        node = await new_node(f"n{number}", labels=labels)
        beat = {"node": f"n{number}", "boot_id": "b", "sequence": 1, "version": "1", "started_at": 1, "labels": labels}
        import json

        await site.bus.js_publish(f"$KV.puna_nodes.n{number}", json.dumps(beat).encode())
        assert node.runner.active == 0
    await site.download("m", selector={"labels": {"gpu": "a100"}})
    record = await site.until_state("t-m", "done")
    assert record.node == "n7"


async def test_a_source_that_no_node_can_read_is_given_up_with_the_reason(
    site: Any, new_node: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker import sources
    from worker.tasks import part

    def unknown(scheme: str) -> None:
        raise sources.Unsupported(f"{scheme}:// is not installed on this node")

    monkeypatch.setattr(part, "find_source", unknown)
    await new_node()
    await site.download("m")
    assert "not installed" in (await site.until_state("t-m", "dead")).error


async def test_progress_and_the_node_stand_in_the_record_while_it_runs(
    site: Any, new_node: Any, wait_until: Any
) -> None:
    await new_node()
    await site.download("hold")

    async def moved() -> Any:
        record = await site.record("t-hold")
        return record if record and record.progress else None

    record = await wait_until(moved)
    assert record.progress.bytes_total == 1000 and record.node == "n1"
    site.go()
    await site.until_state("t-hold", "done")


# -- cancel ---------------------------------------------------------------------------------------------------------
async def test_a_running_task_is_cancelled_and_its_work_stops(site: Any, new_node: Any) -> None:
    await new_node("n1")
    await new_node("n2")
    await site.download("hold", "n1")
    await site.until_state("t-hold", "running")
    await site.publish("cancel", {"task": "t-hold", "id": "c"})
    record = await site.until_state("t-hold", "cancelled")
    await site.until_empty()
    assert record.reason == "it was cancelled"
    assert "n1 stopped hold" in site.done()
    assert (await site.until_state("c", "done")).reason == "n1 was told to stop"


async def test_a_queued_task_that_no_node_has_heard_is_cancelled(site: Any, new_node: Any) -> None:
    await site.download("m", "elsewhere")
    await new_node()
    await site.publish("cancel", {"task": "t-m", "id": "c"})
    assert (await site.until_state("c", "done")).reason == "it was queued"
    assert (await site.record("t-m")).state == "cancelled"
    await site.until_empty()


async def test_a_task_that_waits_for_its_next_try_is_cancelled(site: Any, new_node: Any) -> None:
    await new_node()
    await site.download("fail")
    await site.until_state("t-fail", "retrying")
    await site.publish("cancel", {"task": "t-fail", "id": "c"})
    await site.until_state("t-fail", "cancelled")
    await site.until_empty(1.5)
    assert site.done().count("n1 begin fail") == 1


async def test_to_cancel_what_has_ended_changes_nothing_and_what_nobody_knows_fails(site: Any, new_node: Any) -> None:
    await new_node()
    await site.download("m")
    await site.until_state("t-m", "done")
    await site.publish("cancel", {"task": "t-m", "id": "c1"})
    await site.publish("cancel", {"task": "t-x", "id": "c2"})
    assert "ended before: done" in (await site.until_state("c1", "done")).reason
    assert "no task t-x" in (await site.until_state("c2", "failed")).error


# -- delete, verify, load, unload ------------------------------------------------------------------------------------
async def test_a_delete_on_a_node_in_the_middle_of_a_download_ends_it(site: Any, new_node: Any) -> None:
    await new_node()
    await site.download("hold")
    await site.until_done("n1 begin hold")
    await site.publish("delete", {"model": "hold"}, "n1")
    assert (await site.until_state("t-hold", "cancelled")).reason == "hold was deleted"
    await site.until_empty()


async def test_a_delete_does_not_wait_behind_downloads_that_fill_the_node(site: Any, new_node: Any) -> None:
    node = await new_node(capacity=1)
    node.copies.models["m"] = True
    await site.download("hold")
    await site.until_done("n1 begin hold")
    for number in range(20):
        await site.download(f"hold{number}", "n1" if number % 2 else None)
    await site.publish("delete", {"model": "m"}, "n1")
    await site.until_done("n1 remove m", timeout_s=3)
    site.go()
    await site.until_done("n1 end hold7", "n1 end hold8", timeout_s=20)


async def test_a_delete_without_a_node_leaves_a_tombstone(site: Any, new_node: Any) -> None:
    from bus.kv import Bucket

    await new_node()
    models = Bucket(site.bus, site.bus.names.bucket_models)
    await models.put(encode("a/b"), ModelRecord(model="a/b", source="org/repo").model_dump_json().encode())
    for model, source in (("a/b", "org/repo"), ("never", "vendor://deleted")):
        await site.publish("delete", {"model": model, "id": f"d-{model[:1]}", "retain": True})
        await site.until_state(f"d-{model[:1]}", "done")
        entry = await models.get(encode(model))
        assert entry is not None
        record = ModelRecord.model_validate_json(entry.value)
        assert record.deleting and record.retain and record.source == source
    await site.publish("download", {"model": "a/b", "source": "org/repo", "id": "again"})
    await site.until_state("again", "done")
    assert await models.get(encode("a/b")) is None


async def test_a_record_decides_over_a_task(site: Any, new_node: Any, quick: None) -> None:
    import json

    from bus.kv import Bucket

    node = await new_node()
    beat = {"node": "n1", "boot_id": "b", "sequence": 1, "version": "1", "started_at": 1, "labels": {}}
    await site.bus.js_publish("$KV.puna_nodes.n1", json.dumps(beat).encode())
    models = Bucket(site.bus, site.bus.names.bucket_models)
    await models.put("m", ModelRecord(model="m", source="org/recorded").model_dump_json().encode())
    await site.download("m")
    await site.until_state("t-m", "done")
    assert node.copies.models["m"].source == "org/recorded"
    await site.publish("delete", {"model": "m", "id": "d"}, "n1")
    assert "wants it on this node" in (await site.until_state("d", "failed")).error


async def test_verify_load_and_unload_go_to_who_can(site: Any, new_node: Any, quick: None) -> None:
    node = await new_node()
    node.copies.models["m"] = True
    for op in ("verify", "load", "unload"):
        await site.publish(op, {"model": "m", "id": op})
        await site.until_state(op, "done")
    assert site.done() == ["n1 verify m", "n1 load m", "n1 unload m"]
    await site.publish("load", {"model": "other", "id": "l2"})
    assert "not one of its models" in (await site.until_state("l2", "dead")).error


# -- what goes wrong -------------------------------------------------------------------------------------------------
async def test_a_node_that_stops_gives_its_task_back_and_the_try_does_not_count(site: Any, new_node: Any) -> None:
    first = await new_node("n1")
    await site.download("hold")
    await site.until_state("t-hold", "running")
    await first.stop()
    record = await site.record("t-hold")
    assert (record.state, record.attempts, record.reason) == ("retrying", 0, "n1 stops")
    await new_node("n2")
    site.go()
    record = await site.until_state("t-hold", "done")
    assert (record.node, record.attempts, record.epoch) == ("n2", 1, 2)


async def test_a_killed_nodes_task_is_taken_over(site: Any, new_node: Any, new_process: Any) -> None:
    process = await new_process("n1")
    await site.download("hold")
    await site.until_state("t-hold", "running")
    process.kill()
    site.go()
    await new_node("n2")
    record = await site.until_state("t-hold", "done", timeout_s=15)
    assert (record.node, record.attempts) == ("n2", 2)


async def test_the_late_finish_of_a_frozen_worker_is_refused(site: Any, new_node: Any, new_process: Any) -> None:
    process = await new_process("n1")
    await site.download("hold")
    await site.until_state("t-hold", "running")
    process.freeze()
    other = await new_node("n2")
    await site.until_done("n2 begin hold", timeout_s=15)
    process.wake()
    await site.until_done("n1 stopped hold")
    assert (await site.record("t-hold")).node == "n2" and await site.queued() == 1
    site.go()
    record = await site.until_state("t-hold", "done")
    await site.until_empty()
    assert (record.node, record.epoch) == ("n2", 2) and other.told == ["task_done"]
    assert "n1 end hold" not in site.done()


async def test_a_frozen_worker_that_ends_its_work_as_it_wakes_does_not_finish_the_task(
    site: Any, new_node: Any, new_process: Any
) -> None:
    process = await new_process("n1")
    await site.download("hold")
    await site.until_state("t-hold", "running")
    process.freeze()
    await new_node("n2", capacity=1)
    await site.until_done("n2 begin hold", timeout_s=15)
    site.go()
    await site.until_state("t-hold", "done")
    process.wake()
    await site.until_empty()
    assert (await site.record("t-hold")).node == "n2"


async def test_a_server_that_is_killed_in_the_middle_changes_nothing(
    site: Any, new_node: Any, nats_server: Any
) -> None:
    await new_node()
    await site.download("hold")
    await site.until_state("t-hold", "running")
    nats_server.restart()
    await site.bus.ready(10)
    site.go()
    record = await site.until_state("t-hold", "done", timeout_s=20)
    await site.until_empty(20)
    assert site.done().count("n1 begin hold") == 1, site.done()
    assert (record.node, record.attempts) == ("n1", 1), (record, site.done())


async def test_a_bucket_of_records_that_is_deleted_is_filled_again(site: Any, new_node: Any) -> None:
    await new_node()
    await site.download("hold")
    await site.until_state("t-hold", "running")
    await site.bus.js_api(f"STREAM.DELETE.KV_{site.bus.names.bucket_tasks}")
    site.go()
    record = await site.until_state("t-hold", "done", timeout_s=20)
    await site.until_empty(20)
    assert record.epoch == 1 and site.done() == ["n1 begin hold", "n1 end hold"]


async def test_a_record_that_is_no_record_does_not_hold_up_its_task(site: Any, new_node: Any) -> None:
    await site.records.put("t-m", b"\x00 typed by hand")
    await new_node()
    await site.download("m")
    await site.until_empty()
    assert (await site.until_state("t-m", "done")).node == "n1"


async def test_a_copy_of_a_message_whose_first_one_was_lost_is_worked_on(site: Any, new_node: Any) -> None:
    node = await new_node()
    await site.download("hold", "elsewhere")
    await site.bus.js_api(f"STREAM.PURGE.{site.bus.names.stream_tasks}")
    first = {"task": "t-hold", "op": "download", "model": "hold", "sequence": 1, "state": "running"}
    import json

    await site.records.put(
        "t-hold", json.dumps(first | {"created": 1, "since": 1, "node": "old", "attempts": 1}).encode()
    )
    await site.download("hold")
    await site.until_done("n1 begin hold")
    site.go()
    assert (await site.until_state("t-hold", "done")).epoch == 2
    assert node.runner.active == 0
