"""A node that was killed, or whose server was, in the middle of a task: who goes on with it, and when."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.model import CopyProgress
from schemas.task import TRIES, TaskRecord
from worker.tasks import decide
from worker.tasks.decide import Claim, End, Heard, Me, Stored

pytestmark = pytest.mark.timeout(60)
LONG_S = 120.0
"""An `ack_wait` that no test waits for: what goes on all the same was taken over at the start."""


async def test_a_node_that_was_killed_goes_on_as_soon_as_it_is_back(site: Any, new_process: Any) -> None:
    first = await new_process("n1", ack_wait_s=LONG_S)
    await site.download("hold")
    await site.until_done("n1 begin hold")
    before = await site.until_state("t-hold", "running")
    first.kill()
    site.go()
    await new_process("n1", ack_wait_s=LONG_S)
    record = await site.until_state("t-hold", "done")
    await site.until_empty()
    assert record.node == "n1" and record.epoch > before.epoch and record.delivery is None
    assert site.done() == ["n1 begin hold", "n1 begin hold", "n1 end hold"]


async def test_other_nodes_are_not_handed_what_a_node_goes_on_with(site: Any, new_process: Any, new_node: Any) -> None:
    first = await new_process("n1", ack_wait_s=2)
    await site.download("hold")
    await site.until_done("n1 begin hold")
    first.kill()
    await new_process("n1", ack_wait_s=2)
    await new_node("n2", ack_wait_s=2)
    await site.until_progress("t-hold", after_s=4)
    site.go()
    assert (await site.until_state("t-hold", "done")).node == "n1"
    assert "n2 begin hold" not in site.done()


async def test_a_node_that_is_killed_again_while_it_goes_on_loses_nothing(site: Any, new_process: Any) -> None:
    for _ in range(3):
        process = await new_process("n1", ack_wait_s=LONG_S)
        if not site.done():
            await site.download("hold")
        count = len(site.done())
        await site.until_lines(count + 1)
        process.kill()
    site.go()
    await new_process("n1", ack_wait_s=LONG_S)
    await site.until_state("t-hold", "done")
    await site.until_empty()
    assert site.done().count("n1 end hold") == 1


async def test_the_earlier_life_of_a_node_that_was_only_frozen_finishes_nothing(site: Any, new_process: Any) -> None:
    first = await new_process("n1", ack_wait_s=LONG_S)
    await site.download("hold")
    await site.until_done("n1 begin hold")
    first.freeze()
    await new_process("n1", ack_wait_s=LONG_S)
    await site.until_lines(2)
    first.wake()
    await site.until_done("n1 stopped hold")
    assert await site.queued() == 1
    site.go()
    await site.until_state("t-hold", "done")
    await site.until_empty()
    assert site.done().count("n1 end hold") == 1


async def test_what_waited_for_room_on_the_node_says_so_and_goes_on_too(site: Any, new_process: Any) -> None:
    first = await new_process("n1", ack_wait_s=LONG_S)
    for number in range(3):
        await site.download(f"hold{number}", "n1")
    await site.until_state("t-hold2", "queued")
    record = await site.record("t-hold2")
    assert record.reason == "n1 does 2 at once, and it waits for its turn" and record.attempts == 0
    first.kill()
    site.go()
    await new_process("n1", ack_wait_s=LONG_S)
    for number in range(3):
        assert (await site.until_state(f"t-hold{number}", "done")).node == "n1"
    await site.until_empty()


async def test_what_waits_for_room_is_cancelled(site: Any, new_node: Any) -> None:
    await new_node(capacity=1)
    await site.download("hold1", "n1")
    await site.until_done("n1 begin hold1")
    await site.download("hold2", "n1")
    await site.until_state("t-hold2", "queued")
    await site.publish("cancel", {"task": "t-hold2", "id": "c"})
    await site.until_state("t-hold2", "cancelled")
    site.go()
    await site.until_state("t-hold1", "done")
    await site.until_empty()
    assert not any("hold2" in line for line in site.done())


async def test_a_task_whose_message_was_taken_out_meanwhile_ends(site: Any, new_process: Any) -> None:
    first = await new_process("n1", ack_wait_s=LONG_S)
    await site.download("hold")
    await site.until_done("n1 begin hold")
    first.kill()
    await site.bus.js_api(f"STREAM.PURGE.{site.bus.names.stream_tasks}")
    await new_process("n1", ack_wait_s=LONG_S)
    record = await site.until_state("t-hold", "cancelled")
    assert "not in the queue" in record.reason


async def test_a_record_that_names_another_message_is_not_believed(site: Any, new_process: Any) -> None:
    """A delivery that somebody wrote by hand must not acknowledge what it does not belong to."""
    await site.download("hold", "elsewhere")
    told = {"task": "t-other", "op": "download", "model": "other", "node": "n1", "holder": "old", "sequence": 1}
    told |= {"delivery": "$JS.ACK.PUNA_TASKS.tasks.1.1.1.1700000000000000000.0", "state": "running"}
    await site.records.put("t-other", json.dumps(told | {"created": 1, "since": 1, "attempts": 1}).encode())
    await new_process("n1", ack_wait_s=LONG_S)
    await site.until_state("t-other", "cancelled")
    assert await site.queued() == 1


async def test_a_server_that_was_started_anew_makes_no_other_node_begin_it_too(
    site: Any, new_node: Any, new_process: Any, nats_server: Any
) -> None:
    await new_process("n1", ack_wait_s=2)
    await site.download("hold")
    await site.until_done("n1 begin hold")
    await new_node("n2", ack_wait_s=2)
    nats_server.restart()
    await site.bus.ready(10)
    await site.until_progress("t-hold", after_s=4)
    site.go()
    record = await site.until_state("t-hold", "done")
    await site.until_empty()
    assert (record.node, record.epoch) == ("n1", 1) and "n2 begin hold" not in site.done()


# -- decisions -------------------------------------------------------------------------------------------------------
HEARD = Heard("t", "download", "m", 7, 10.0, True, "ack")
ME = Me("n1", "new")


def running(reached: int | None, **changes: Any) -> TaskRecord:
    progress = None if reached is None else CopyProgress(phase="fetching", bytes_total=100, bytes_done=reached)
    told: dict[str, Any] = {"node": "n1", "holder": "old", "sequence": 7, "delivery": "ack", "attempts": 1}
    told |= {"task": "t", "op": "download", "model": "m", "state": "running", "created": 1, "since": 1}
    return TaskRecord.model_validate(told | {"progress": progress} | changes)


def claimed(record: TaskRecord) -> TaskRecord:
    step = decide.on_delivery(HEARD, Stored(record, 1, 1.0), ME, 2.0)
    assert isinstance(step, Claim), step
    return step.record


def test_a_lost_try_that_came_further_than_all_before_does_not_count() -> None:
    first = claimed(running(50))
    assert (first.attempts, first.reached_bytes) == (1, 50)
    further = claimed(first.model_copy(update={"progress": CopyProgress(phase="fetching", bytes_done=60)}))
    assert (further.attempts, further.reached_bytes) == (1, 60)
    stuck = claimed(further.model_copy(update={"progress": CopyProgress(phase="fetching", bytes_done=60)}))
    assert (stuck.attempts, stuck.reached_bytes) == (2, 60)


def test_what_ends_its_worker_without_coming_further_is_given_up() -> None:
    record = running(None, attempts=TRIES)
    step = decide.on_delivery(HEARD, Stored(record, 1, 1.0), ME, 2.0)
    assert isinstance(step, End) and step.record.state == "dead"


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "n2"},
        {"holder": "new"},
        {"holder": None},
        {"delivery": None},
        {"state": "done"},
    ],
)
def test_only_what_an_earlier_life_of_this_node_has_in_its_hands_is_gone_on_with(changes: dict[str, Any]) -> None:
    assert decide.on_restart(running(5, **changes), ME, 2.0) is None
    assert decide.on_restart(running(5), ME, 2.0) is not None


def test_a_try_that_failed_because_nats_was_away_does_not_count() -> None:
    failure = decide.Failure("bus_unavailable", "NATS cannot be reached", retryable=True)
    step = decide.on_failure(running(5, attempts=TRIES), failure, 0.5, 2.0)
    assert isinstance(step, decide.Later) and step.record.state == "retrying"
    assert step.record.attempts == TRIES - 1
