"""Requests of the own HTTP that wait for a model which is not loaded, and what they are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.errors import ModelLoading, PunaError
from schemas.request import RequestHead
from worker.plans import Cannot, Wait
from worker.reply import Flow, Summary
from worker.work import Claim, Work


class Answer:
    """A reply that keeps what it is told."""

    def __init__(self) -> None:
        self.body = b""
        self.failure: PunaError | None = None
        self.over = asyncio.Event()

    def begin(self, flow: Flow) -> None:
        pass

    def open(self, status: int, content_type: str) -> None:
        pass

    def data(self, data: bytes) -> None:
        self.body += data

    def end(self, summary: Summary) -> None:
        self.over.set()

    def error(self, error: PunaError) -> None:
        self.failure = error
        self.over.set()

    def tick(self, now: float) -> bool:
        return not self.over.is_set()

    async def code(self) -> str:
        """The error that it ended with."""
        async with asyncio.timeout(10):
            await self.over.wait()
        assert self.failure is not None
        return self.failure.code


def ask(node: Any, *, model: str = "m", deadline_s: float = 30.0) -> Answer:
    """One request over the node's own HTTP."""
    now = asyncio.get_running_loop().time()
    answer = Answer()
    head = RequestHead("chat", f"h{id(answer)}", "", deadline_s=deadline_s)
    node.serving.take(Work(head, model, b'{"messages": []}', "http", now, Claim(None, now), False), answer)
    return answer


async def test_a_request_for_a_cold_model_starts_it_without_a_lease(new_node: Any) -> None:
    node = await new_node("n1")
    answer = ask(node)
    await answer.over.wait()
    assert b"hello" in answer.body
    assert len(node.keeper.started) == 1


async def test_a_model_that_cannot_run_here_is_refused_at_once_with_the_reason(new_node: Any) -> None:
    node = await new_node("n1", at_once=False)
    node.keeper.answer = Cannot("it needs 40 GiB and the largest device has 8 GiB")
    answer = ask(node)
    assert await answer.code() == "unavailable"
    assert answer.failure is not None
    assert "40 GiB" in answer.failure.message
    assert node.keeper.started == []


async def test_an_engine_that_is_unfit_ends_the_wait_with_its_reason(new_node: Any) -> None:
    node = await new_node("n1", at_once=False)
    answer = ask(node)
    node.keeper.answer = Wait("its engine is crashed")
    node.keeper.move(node.keeper.of("m")[0], "crashed", "the file is broken", unfit=True)
    assert await answer.code() == "unavailable"
    assert answer.failure is not None
    assert "the file is broken" in answer.failure.message
    assert answer.failure.retry_after_s is not None


async def test_a_crash_that_is_tried_again_does_not_end_the_wait(new_node: Any) -> None:
    node = await new_node("n1", at_once=False)
    answer = ask(node)
    [engine] = node.keeper.of("m")
    node.keeper.answer = Wait("its engine is crashed")
    node.keeper.move(engine, "crashed", "signal SIGSEGV")
    node.keeper.move(engine, "starting")
    node.keeper.move(engine, "ready")
    await answer.over.wait()
    assert answer.failure is None


async def test_a_load_that_takes_too_long_is_told_with_its_state(new_node: Any) -> None:
    node = await new_node("n1", at_once=False)
    answer = ask(node, deadline_s=0.3)
    assert await answer.code() == "model_loading"
    assert isinstance(answer.failure, ModelLoading)
    assert "starting" in answer.failure.message
    assert answer.failure.loading is not None
    assert answer.failure.loading["state"] == "loading"
    assert set(answer.failure.loading) == {"state", "reason", "progress", "eta_s"}
    assert b'"loading":{"state":"loading"' in answer.failure.body()


async def test_draining_refuses_what_waits(new_node: Any) -> None:
    node = await new_node("n1", at_once=False)
    answer = ask(node)
    node.serving.close()
    assert await answer.code() == "unavailable"


@pytest.mark.parametrize("again", [1, 3])
async def test_the_last_words_of_an_old_engine_do_not_take_the_slots_of_a_new_one(new_node: Any, again: int) -> None:
    node = await new_node("n1")
    old = node.keeper.add("m")
    node.keeper.move(old, "ready")
    new = type(old)(old.engine_id, "m", 2, 1, ("cpu:0",))
    node.keeper._engines[old.engine_id] = new
    node.keeper.move(new, "ready")
    for _ in range(again):
        node.keeper.move(old, "stopped")
    assert node.serving.slots.free("m") == 2
