"""Named tasks: none dies unheard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bus.watched import Tasks


async def fails() -> None:
    raise ValueError("boom")


async def test_a_task_that_fails_is_logged_under_its_name(caplog: pytest.LogCaptureFixture) -> None:
    deaths: list[str] = []
    tasks = Tasks(deaths.append)
    task = tasks.start("fetch r1", fails())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    (record,) = [each for each in caplog.records if getattr(each, "event", "") == "task_failed"]
    assert (record.levelno, vars(record)["task"]) == (logging.ERROR, "fetch r1")
    assert deaths == []
    await tasks.stop()


async def ends() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("work", [fails, ends])
async def test_a_vital_task_that_ends_in_any_way_is_told(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    deaths: asyncio.Queue[str] = asyncio.Queue()
    tasks = Tasks(deaths.put_nowait)
    tasks.start_vital("heartbeats", work())
    async with asyncio.timeout(5):
        assert await deaths.get() == "heartbeats"
    await tasks.stop()


async def test_stop_ends_all_in_silence_and_may_be_called_twice(caplog: pytest.LogCaptureFixture) -> None:
    deaths: list[str] = []
    tasks = Tasks(deaths.append)
    running = tasks.start("request", asyncio.Event().wait())  # type: ignore[arg-type]
    tasks.start_vital("heartbeats", asyncio.Event().wait())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await tasks.stop()
    await tasks.stop()
    assert running.cancelled()
    assert deaths == []
    assert caplog.records == []
