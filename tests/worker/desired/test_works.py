"""One piece of work a model: begun, joined, ended and tried again, over an owner of copies that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.model import CopyRecord, ModelRecord, Wanted
from worker.desired.decide import Ensure, Leave, Remove
from worker.desired.works import LATER_S, LATEST_S, SOON_S, Works
from worker.sources import NotThere, SourceError, Unreachable
from worker.store.errors import Superseded

START = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Owner:
    """Of copies. `begun` has what was asked; an ensure ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ending: dict[str, asyncio.Future[None]] = {}
        self.told: list[tuple[str, str, float]] = []
        self.records: dict[str, CopyRecord] = {}
        self.cancelled: list[str] = []
        self.noted: dict[str, ModelRecord] = {}

    async def ensure(self, want: Wanted) -> None:
        self.begun.append(f"ensure {want.model} {getattr(want, 'generation', None)}")
        self.ending[want.model] = asyncio.get_running_loop().create_future()
        try:
            await self.ending[want.model]
        except asyncio.CancelledError:
            self.cancelled.append(want.model)
            raise

    async def remove(self, model: str, *, retain: bool = False) -> None:
        self.begun.append(f"remove {model} {retain}")
        running = self.ending.pop(model, None)
        if running is not None and not running.done():
            running.set_exception(Superseded("it was deleted"))

    def postpone(self, want: Wanted, reason: str, at: float) -> None:
        self.told.append((want.model, reason, at))

    def states(self) -> dict[str, CopyRecord]:
        return self.records

    def state(self, model: str, state: Any, **more: Any) -> None:
        self.records[model] = CopyRecord(model=model, node="n", state=state, since=0, **more)

    # -- notes
    async def keep(self, record: ModelRecord, revision: int) -> None:
        self.noted[record.model] = record

    async def drop(self, model: str) -> None:
        self.noted.pop(model, None)


class Site:
    def __init__(self, begin_after_s: float = 0.0) -> None:
        self.clock = Clock()
        self.owner = Owner()
        self.ended = 0
        self.works = Works(
            self.owner,
            self.owner,
            begin_at=START + begin_after_s,
            ended=self._end,
            revision=lambda _: 1,
            monotonic=self.clock,
            clock=self.clock,
        )

    def _end(self) -> None:
        self.ended += 1

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def follow(self, verdict: Ensure | Remove | Leave) -> None:
        self.works.follow({"m": verdict})
        await self.settle()

    async def fail(self, error: SourceError) -> None:
        self.owner.ending["m"].set_exception(error)
        await self.settle()


def ensure(generation: int = 1, *, fetches: bool = True) -> Ensure:
    record = ModelRecord(model="m", source="hf://o/r", generation=generation)
    return Ensure(record, "wanted", fetches=fetches)


REMOVE = Remove("it was deleted", retain=False)
UNWANTED = Leave("others hold it", wanted=False)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    await site.works.stop()


async def test_the_same_verdict_again_begins_nothing_new(site: Site) -> None:
    await site.follow(ensure())
    await site.follow(ensure())
    assert site.owner.begun == ["ensure m 1"]
    assert site.owner.noted["m"].generation == 1
    site.owner.ending["m"].set_result(None)
    await site.settle()
    assert (site.ended, site.works.busy("m")) == (1, False)


async def test_another_record_takes_the_place_of_the_one_before_without_cancelling_its_work(site: Site) -> None:
    await site.follow(ensure(1))
    await site.follow(ensure(2))
    assert site.owner.begun == ["ensure m 1", "ensure m 2"]
    assert site.owner.cancelled == []


async def test_a_delete_ends_what_runs_through_the_owner_of_the_copies_and_forgets_the_record(site: Site) -> None:
    await site.follow(ensure())
    await site.follow(REMOVE)
    assert site.owner.begun == ["ensure m 1", "remove m False"]
    assert site.owner.noted == {}
    assert site.works.due_at() == float("inf"), "the work that was ended from outside is no failure"


async def test_a_delete_in_the_same_moment_as_the_first_fetch_is_not_undone_by_it(site: Site) -> None:
    site.works.follow_one("m", ensure())
    site.works.follow_one("m", REMOVE)
    await site.settle()
    assert site.owner.begun == ["remove m False"]


async def test_a_record_that_is_back_before_its_delete_ended_stays_noted(site: Site) -> None:
    await site.follow(ensure())
    site.works.follow_one("m", REMOVE)
    site.works.follow_one("m", ensure(2))
    await site.settle()
    assert site.owner.noted["m"].generation == 2


async def test_what_is_not_wanted_any_more_before_anything_came_is_cancelled(site: Site) -> None:
    await site.follow(ensure())
    await site.follow(UNWANTED)
    assert site.owner.cancelled == ["m"]
    assert not site.works.busy("m")


async def test_what_must_stay_for_now_goes_on(site: Site) -> None:
    await site.follow(ensure())
    await site.follow(Leave("its record cannot be read", wanted=True))
    assert site.owner.cancelled == []


async def test_a_model_without_any_verdict_is_not_fetched_any_more(site: Site) -> None:
    await site.follow(ensure())
    site.works.follow({})
    await site.settle()
    assert site.owner.cancelled == ["m"]


async def test_a_failure_is_tried_again_when_the_copys_record_says(site: Site) -> None:
    await site.follow(ensure())
    site.owner.state("m", "Failed", next_retry_at=START + 77)
    await site.fail(Unreachable("no connection"))
    assert site.works.due_at() == START + 77
    site.clock.now += 76
    await site.follow(ensure())
    assert len(site.owner.begun) == 1
    site.clock.now += 1
    await site.follow(ensure())
    assert len(site.owner.begun) == 2


async def test_a_failure_that_hardly_passes_is_tried_again_later_and_later_and_told(site: Site) -> None:
    waits: list[float] = []
    for _ in range(6):
        await site.follow(ensure())
        await site.fail(NotThere("no such repository"))
        waits.append(site.works.due_at() - site.clock.now)
        site.clock.now = site.works.due_at()
    assert waits == [LATER_S, 2 * LATER_S, 4 * LATER_S, 8 * LATER_S, LATEST_S, LATEST_S]
    assert [told[1] for told in site.owner.told] == ["no such repository"] * 6


async def test_a_changed_record_is_tried_at_once_after_a_failure(site: Site) -> None:
    await site.follow(ensure())
    await site.fail(NotThere("no such repository"))
    await site.follow(ensure(2))
    assert site.owner.begun == ["ensure m 1", "ensure m 2"]


async def test_what_somebody_else_asked_for_is_not_ended_while_it_comes(site: Site) -> None:
    await site.follow(ensure())
    site.owner.state("m", "Downloading")
    await site.fail(Superseded("other files were asked for"))
    for _ in range(3):
        site.clock.now += SOON_S
        await site.follow(ensure())
    assert len(site.owner.begun) == 1
    site.owner.state("m", "Ready")
    site.clock.now += SOON_S
    await site.follow(ensure())
    assert len(site.owner.begun) == 2


async def test_after_a_start_fetches_wait_their_turn_and_say_so_while_all_else_does_not() -> None:
    site = Site(begin_after_s=20)
    await site.follow(ensure())
    assert site.owner.begun == []
    [(model, reason, at)] = site.owner.told
    assert (model, at) == ("m", START + 20) and "after the start" in reason
    assert site.works.due_at() == START + 20
    await site.follow(ensure(fetches=False))
    assert site.owner.begun == ["ensure m 1"]
    await site.follow(REMOVE)
    assert site.owner.begun[1:] == ["remove m False"]
    await site.works.stop()


async def test_after_the_wait_the_fetch_begins() -> None:
    site = Site(begin_after_s=20)
    await site.follow(ensure())
    site.clock.now += 20
    await site.follow(ensure())
    assert site.owner.begun == ["ensure m 1"]
    await site.works.stop()


async def test_nothing_begins_once_it_is_closed(site: Site) -> None:
    site.works.closed = True
    await site.follow(ensure())
    assert site.owner.begun == []
