"""A request that kills engines is tried once more as a suspect, and then refused everywhere."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from bus.kv import Entry
from gateway.poison import DEATHS_LIMIT, Suspect, Suspects
from gateway.verdict import Progress, judge
from schemas.errors import EngineDied, Unavailable
from schemas.reply import Failure

DEATH = Failure(code=EngineDied.code, status=502, retryable=True)
BUSY = Failure(code=Unavailable.code, status=503, retryable=True)
WRONG = Failure(code="invalid_request", status=400)


@pytest.mark.parametrize(
    ("failure", "offered", "begun", "tries_left", "deaths", "verdict"),
    [
        (DEATH, False, False, 2, 1, "again"),
        (DEATH, True, False, 2, 1, "again"),
        (DEATH, False, True, 2, 1, "fail"),
        (DEATH, False, False, 0, 1, "fail"),
        (DEATH, False, False, 2, 2, "poisoned"),
        (DEATH, False, True, 0, 2, "poisoned"),
        (BUSY, True, False, 0, 0, "line"),
        (WRONG, True, False, 2, 0, "line"),
        (BUSY, False, False, 1, 0, "again"),
        (BUSY, False, False, 0, 0, "fail"),
        (BUSY, False, True, 2, 0, "fail"),
        (WRONG, False, False, 2, 0, "fail"),
    ],
)
def test_what_follows_from_a_failure(failure, offered, begun, tries_left, deaths, verdict) -> None:
    assert judge(failure, Progress(offered, begun, tries_left, deaths)) == verdict


def entry(digest: str, revision: int, value: bytes) -> tuple[str, Entry]:
    return f"poison.{digest}", Entry(f"poison.{digest}", value, revision, 0.0)


def test_the_bucket_and_our_own_count_together_and_the_more_deaths_stand() -> None:
    known = Suspects()
    known.add("a", Suspect(deaths=1))
    known.take(dict([entry("a", 1, Suspect(deaths=2).model_dump_json().encode())]))
    found = known.find("a")
    assert found is not None
    assert found.deaths == 2
    assert len(known) == 1, "what the bucket shows need not be ours any more"
    known.take({})
    assert known.find("a") is None


def test_other_leases_are_not_read_and_what_cannot_be_read_is_an_operators_refusal() -> None:
    known = Suspects()
    lease = Entry("start.m", b"n1", 3, 0.0)
    known.take({"start.m": lease} | dict([entry("a", 1, b"no more of this")]))
    assert len(known) == 1
    found = known.find("a")
    assert found is not None
    assert found.deaths >= DEATHS_LIMIT


def test_there_is_a_limit_and_the_newest_stay() -> None:
    known = Suspects(limit=2)
    known.take(dict(entry(str(n), n, b"{}") for n in range(5)))
    assert [known.find(str(n)) is not None for n in range(5)] == [False, False, False, True, True]
    assert not known.add("own", Suspect())


# -- with a gateway ---------------------------------------------------------------------------------------------------
async def die(job: Any) -> None:
    """Accepted, and then the engine is dead."""
    assert await job.accept() == b"go"
    await job.refuse("engine_died", 502, message="the engine was killed by signal 11")


async def test_the_first_death_is_tried_elsewhere_unseen_as_a_suspect_and_clears_it(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    first = await worker.take()
    assert "Puna-Deaths" not in first.headers
    await die(first)
    second = await worker.take()
    assert (second.epoch, second.headers["Puna-Deaths"]) == (2, "1")
    await second.answer("fine")
    assert "fine" in (await asked).text
    bucket = await leases(worker)
    async with asyncio.timeout(3):
        while await bucket.keys():
            await asyncio.sleep(0.01)


async def test_the_second_death_is_a_422_here_and_at_every_other_gateway(gateway, worker, start_gateway) -> None:
    asked = gateway.ask()
    await die(await worker.take())
    await die(await worker.take())
    response = await asked
    assert (response.status_code, response.json()["error"]["code"]) == (422, "request_kills_engine")
    assert "signal 11" in response.json()["error"]["message"]
    assert (await gateway.ask()).status_code == 422
    assert await worker.line_length() == 0
    other = await start_gateway()
    await other.until_seen()
    async with asyncio.timeout(3):
        while (response := await other.ask(headers={"x-puna-deadline-ms": "100"})).status_code != 422:
            pass
    innocent = other.ask(user="another")
    await (await worker.take()).answer_whole({})
    assert (await innocent).status_code == 200


async def test_the_record_says_why_and_when_and_nothing_of_the_request(gateway, worker) -> None:
    asked = gateway.ask(user="somebody-in-particular")
    await die(await worker.take())
    await die(await worker.take())
    await asked
    body = asked.result().request.content
    digest = hashlib.sha256(b"chat\0m\0" + body).hexdigest()
    bucket = await leases(worker)
    async with asyncio.timeout(3):
        while (found := await bucket.get(f"poison.{digest}")) is None or found["deaths"] < 2:
            await asyncio.sleep(0.01)
    assert (found["deaths"], found["node"], found["why"]) == (2, "n1", "the engine was killed by signal 11")
    assert found["when"] > 1.7e9
    assert "somebody" not in json.dumps(found)


async def test_a_death_in_mid_stream_counts_for_the_same_request_sent_again(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(b"data: {}\n\n")
    await job.refuse("engine_died", 502)
    assert "engine_died" in (await asked).text
    asked = gateway.ask(stream=True)
    job = await worker.take()
    assert job.headers["Puna-Deaths"] == "1"
    await die(job)
    response = await asked
    assert (response.status_code, response.json()["error"]["code"]) == (422, "request_kills_engine")


async def test_a_suspect_is_not_offered_to_the_engine_of_its_conversation(gateway, worker) -> None:
    turn = {"messages": [{"role": "user", "content": "a"}]}
    asked = gateway.ask(**turn)
    await (await worker.take()).answer_whole({}, timings={"cache_n": 0, "prompt_n": 9})
    await asked
    later = {"messages": [*turn["messages"], {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}
    asked = gateway.ask(**later)
    await die(await asyncio.wait_for(worker.asked.get(), 3))
    job = await worker.take()
    assert (job.epoch, job.headers["Puna-Deaths"]) == (2, "1")
    await job.answer_whole({})
    await asked


class Leases:
    """The bucket as the `nats` command line reads it."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def keys(self) -> list[str]:
        from nats.js.errors import NoKeysError

        try:
            return await self._store.keys()
        except NoKeysError:
            return []

    async def get(self, key: str) -> dict[str, Any] | None:
        from nats.js.errors import KeyNotFoundError

        try:
            return json.loads((await self._store.get(key)).value)
        except KeyNotFoundError:
            return None


async def leases(worker: Any) -> Leases:
    return Leases(await worker.nc.jetstream().key_value(worker.names.bucket_leases))
