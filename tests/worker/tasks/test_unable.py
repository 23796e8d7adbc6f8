"""A task for any node goes on to the next where a node cannot do it for a reason of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from schemas.task import TRIES, TaskRecord, Unable
from worker.sources import NotThere
from worker.sources.errors import Denied, NoSpace
from worker.store.errors import NeverFits
from worker.tasks import unable
from worker.tasks.decide import PASSED_ON_DELAY_S, End, Failure, Heard, Later, Me, Refusal, Stored
from worker.tasks.decide import on_declined as declined
from worker.tasks.decide import on_failure as failed

pytestmark = pytest.mark.timeout(60)
HERE = Me("n1", "h1")
FOR_GOOD = Failure("vram_insufficient", "40 GB are needed", retryable=False, of_node=True)
PASSING = Failure("no_space", "the disk is full", retryable=True, of_node=True)
OF_SOURCE = Failure("source_not_found", "no such repository", retryable=False)


def record(*others: Unable, state: str = "running", attempts: int = 1, node: str = "n1") -> TaskRecord:
    fields: dict[str, Any] = {"state": state, "attempts": attempts, "node": node, "unable": others}
    return TaskRecord(task="t", op="download", model="m", created=1.0, since=1.0, **fields)


BIG = Unable(node="n2", reason="needs another device")
FULL = Unable(node="n2", reason="no space", passing=True)


@pytest.mark.parametrize(
    ("before", "failure", "others", "state", "attempts", "left"),
    [
        (record(), FOR_GOOD, True, "queued", 0, {"n1"}),
        (record(), PASSING, True, "queued", 0, {"n1"}),
        (record(BIG), PASSING, True, "queued", 0, {"n1", "n2"}),
        (record(), FOR_GOOD, False, "failed", 1, {"n1"}),
        (record(BIG), FOR_GOOD, False, "failed", 1, {"n1", "n2"}),
        (record(), PASSING, False, "retrying", 1, set()),
        (record(FULL), PASSING, False, "retrying", 1, set()),
        (record(FULL), FOR_GOOD, False, "retrying", 1, {"n1"}),
        (record(BIG), PASSING, False, "retrying", 1, {"n2"}),
        (record(FULL, attempts=TRIES), PASSING, False, "dead", TRIES, {"n1", "n2"}),
        (record(BIG), OF_SOURCE, True, "failed", 1, {"n2"}),
    ],
)
def test_where_failed_work_goes(
    before: TaskRecord, failure: Failure, others: bool, state: str, attempts: int, left: set[str]
) -> None:
    step = failed(before, failure, 0.5, 2.0, others=others)
    after = step.record
    assert (after.state, after.attempts, {each.node for each in after.unable}) == (state, attempts, left)
    assert isinstance(step, End if state in ("failed", "dead") else Later)
    if state == "queued":
        assert isinstance(step, Later) and step.delay_s == PASSED_ON_DELAY_S
        assert after.error is None and "another node may" in str(after.reason)


def test_the_last_failure_tells_each_nodes_reason() -> None:
    same = tuple(Unable(node=f"n{number}", reason="40 GB are needed") for number in (2, 3))
    step = failed(record(*same, Unable(node="n4", reason="no token")), FOR_GOOD, 0.5, 2.0)
    assert step.record.error == "no node can do it: n2, n3, n1: 40 GB are needed; n4: no token"


def test_what_is_kept_of_many_nodes_is_bounded() -> None:
    before = record()
    for number in range(unable.UNABLE_MOST + 10):
        before = unable.with_one(before, f"n{number}", "x" * 10_000, passing=False)
    assert len(before.model_dump_json()) < unable.UNABLE_MOST * 300
    assert unable.full(before)
    assert len(str(failed(before, FOR_GOOD, 0.5, 2.0).record.error)) <= 1000


def test_a_refusal_of_the_nodes_own_is_remembered_and_those_that_may_pass_are_asked_again() -> None:
    heard = Heard("t", "download", "m", 7, 0.0, True)
    before = Stored(record(FULL, state="queued", attempts=0), 3, 0.0)
    goes_on = declined(heard, before, HERE, Refusal("ftp:// is not installed", own=True), 2.0, others=True)
    assert {each.node for each in goes_on.record.unable} == {"n1", "n2"} and goes_on.record.declined == 0
    none_left = declined(heard, before, HERE, Refusal("ftp:// is not installed", own=True), 2.0, others=False)
    assert none_left.record.unable == () and none_left.record.declined == 1
    known = declined(heard, before, HERE, Refusal("as it said"), 2.0, others=True)
    assert known.record == before.record, "nothing is written"


# -- on a real server ------------------------------------------------------------------------------------------------
@pytest.fixture
def fleet_of(site: Any, new_node: Callable[..., Any], quick: None) -> Callable[..., Any]:
    """`await fleet_of(n1={"m": error}, n2={})` → nodes that know of each other, and what each cannot do."""

    async def make(**failing: dict[str, Exception]) -> list[Any]:
        nodes: list[Any] = []
        for name in failing:
            beat = {"node": name, "boot_id": "b", "sequence": 1, "version": "1", "started_at": 1, "labels": {}}
            await site.bus.js_publish(f"$KV.puna_nodes.{name}", json.dumps(beat).encode())
        for name, errors in failing.items():
            nodes.append(await new_node(name))
            nodes[-1].copies.failing.update(errors)
        return nodes

    return make


@pytest.mark.parametrize(
    "error", [NeverFits("40 GB are needed"), Denied("secret:mine is not here"), NoSpace("the disk is full")]
)
async def test_the_node_that_can_gets_it_whoever_takes_it_first(site: Any, fleet_of: Any, error: Exception) -> None:
    await fleet_of(n1={"m": error, "m2": error}, n2={}, n3={"m": error, "m2": error})
    for model in ("m", "m2"):
        await site.download(model)
        done = await site.until_state(f"t-{model}", "done", "failed", "dead")
        assert (done.state, done.node, done.attempts) == ("done", "n2", 1), done
        assert {each.node for each in done.unable} <= {"n1", "n3"}
    await site.until_empty()
    assert all(site.done().count(f"{node} begin m") <= 1 for node in ("n1", "n2", "n3")), site.done()
    assert await site.letters() == []


async def test_where_no_node_can_each_ones_reason_is_told(site: Any, fleet_of: Any) -> None:
    await fleet_of(n1={"m": NeverFits("40 GB are needed")}, n2={"m": NotThere("no such file", of_node=True)})
    await site.download("m")
    end = await site.until_state("t-m", "failed")
    assert "n1: 40 GB are needed" in end.error and "n2: no such file" in end.error
    (letter,) = await site.letters()
    assert "n1: 40 GB are needed" in letter.error and letter.code == "task_failed"
    assert sorted(site.done()) == ["n1 begin m", "n2 begin m"]
    await site.until_empty()


async def test_what_may_pass_is_tried_again_by_all_and_given_up_at_last(site: Any, fleet_of: Any) -> None:
    await fleet_of(n1={"m": NoSpace("disk one is full")}, n2={"m": NoSpace("disk two is full")})
    await site.download("m")
    end = await site.until_state("t-m", "dead", timeout_s=20.0)
    assert "n1: disk one is full" in end.error and "n2: disk two is full" in end.error
    assert [site.done().count(f"{node} begin m") for node in ("n1", "n2")] == [TRIES, TRIES]


async def test_a_task_that_names_its_node_does_not_go_to_another(site: Any, fleet_of: Any) -> None:
    await fleet_of(n1={"m": NeverFits("40 GB are needed")}, n2={})
    await site.download("m", "n1")
    assert (await site.until_state("t-m", "failed")).error == "40 GB are needed"
    assert site.done() == ["n1 begin m"]


async def test_a_source_that_none_of_several_nodes_reads_does_not_go_round_for_ever(
    site: Any, fleet_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker import sources
    from worker.tasks import part

    def unknown(scheme: str) -> None:
        raise sources.Unsupported(f"{scheme}:// is not installed on this node")

    monkeypatch.setattr(part, "find_source", unknown)
    await fleet_of(n1={}, n2={})
    await site.download("m")
    assert "not installed" in (await site.until_state("t-m", "dead", timeout_s=20.0)).error


async def test_a_node_that_cannot_serve_leaves_a_download_to_one_that_can(
    site: Any, new_node: Any, quick: None
) -> None:
    for name, engine in (("n1", "no"), ("n2", "yes")):
        labels = {"puna.engine": engine}
        beat = {"node": name, "boot_id": "b", "sequence": 1, "version": "1", "started_at": 1, "labels": labels}
        await site.bus.js_publish(f"$KV.puna_nodes.{name}", json.dumps(beat).encode())
    await new_node("n1", labels={"puna.engine": "no"})
    await site.download("m")
    await site.until_state("t-m", "queued")
    await new_node("n2", labels={"puna.engine": "yes"})
    assert (await site.until_state("t-m", "done")).node == "n2"
    await site.download("kept", "n1")
    assert (await site.until_state("t-kept", "done")).node == "n1", "who names it, means it"
