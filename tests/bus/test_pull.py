"""The pull loop against a real server that is killed, frozen, and loses its streams and consumers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from bus.connection import Bus
from bus.job import Job, parse_delivery
from bus.pull import WorkPull
from bus.settings import NatsSettings
from bus.topology import ensure, ensure_consumer
from schemas.errors import PunaError
from schemas.subjects import Names
from schemas.topology import StreamSpec, Topology, line

NAMES = Names()
QUEUE = StreamSpec("PUNA_QUEUE", ("puna.queue.*.*",), "memory", retention="workqueue", allow_msg_ttl=True)
TOPOLOGY = Topology(streams=(QUEUE,))
SPEC = line(NAMES, "interactive", "m")
SUBJECT = SPEC.filter_subject


class Worker:
    """A pull whose jobs are collected, and acknowledged unless told otherwise."""

    def __init__(self, bus: Bus, *, spec: Any = SPEC, on_job: Callable[[Job], object] = Job.ack) -> None:
        self.bus = bus
        self.jobs: list[Job] = []
        self.arrived = asyncio.Event()
        self.on_job = on_job
        self.pull = WorkPull(bus, spec, self._deliver, name="test", repair=self._repair)

    async def _repair(self) -> None:
        await ensure(self.bus, TOPOLOGY)

    def _deliver(self, job: Job) -> None:
        self.jobs.append(job)
        self.on_job(job)
        self.arrived.set()

    @property
    def payloads(self) -> list[bytes]:
        return [job.payload for job in self.jobs]

    async def until(self, count: int, timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while len(self.jobs) < count:
                self.arrived.clear()
                await self.arrived.wait()


async def eventually(check: Callable[[], Any], timeout_s: float = 10.0) -> float:
    """Seconds until the check held. Awaits it if it is a coroutine."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while True:
            found = check()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return time.monotonic() - began
            await asyncio.sleep(0.005)


async def num_waiting(bus: Bus, spec: Any = SPEC) -> int:
    try:
        return (await bus.js_api(f"CONSUMER.INFO.{spec.stream}.{spec.durable}"))["num_waiting"]
    except PunaError:
        return -1


async def holds(bus: Bus, stream: str, messages: int) -> bool:
    return (await bus.js_api(f"STREAM.INFO.{stream}"))["state"]["messages"] == messages


async def publish(bus: Bus, payload: bytes, subject: str = SUBJECT) -> None:
    """Until stored; under one id, as a gateway does it."""
    async with asyncio.timeout(10):
        while True:
            try:
                await bus.js_publish(subject, payload, msg_id=payload.decode())
                return
            except PunaError:
                await asyncio.sleep(0.02)


@pytest.fixture
async def connect(nats_server: Any) -> AsyncIterator[Callable[..., Any]]:
    made: list[Bus] = []

    async def make() -> Bus:
        made.append(await Bus.connect(NatsSettings(url=nats_server.url), name=f"test{len(made)}"))
        return made[-1]

    yield make
    for bus in made:
        await bus.close()


@pytest.fixture
async def bus(connect: Any) -> Bus:
    found: Bus = await connect()
    await ensure(found, TOPOLOGY)
    return found


@pytest.fixture
async def worker(bus: Bus) -> AsyncIterator[Worker]:
    found = Worker(bus)
    await found.pull.start()
    yield found
    await found.pull.stop()


async def test_exactly_the_wanted_pulls_stand_at_the_server(bus: Bus, worker: Worker) -> None:
    worker.pull.want(5)
    await eventually(lambda: worker.pull.standing)
    await eventually(lambda: num_waiting_is(bus, 5))
    worker.pull.want(7)
    await eventually(lambda: num_waiting_is(bus, 7))
    assert worker.pull.outstanding == 7


async def test_each_job_carries_what_the_server_knows_of_it(bus: Bus, worker: Worker) -> None:
    await bus.js_publish(SUBJECT, b"one", headers={"Puna-Op": "chat"})
    worker.pull.want(1)
    await worker.until(1)
    job = worker.jobs[0]
    assert (job.subject, job.payload, job.headers["Puna-Op"]) == (SUBJECT, b"one", "chat")
    assert (job.stream_sequence, job.delivered, job.pending) == (1, 1, 0)
    assert abs(job.published_at - time.time()) < 60


async def test_hundred_jobs_come_once_each_through_three_pulls(bus: Bus, worker: Worker) -> None:
    worker.pull.want(3)
    sent = [b"%d" % i for i in range(100)]
    await asyncio.gather(*(publish(bus, payload) for payload in sent))
    await worker.until(100)
    assert sorted(worker.payloads) == sorted(sent)
    await eventually(lambda: num_waiting_is(bus, 3))


async def test_a_lowered_want_hands_over_what_still_comes_and_asks_for_no_more(bus: Bus, worker: Worker) -> None:
    worker.pull.want(2)
    await eventually(lambda: worker.pull.standing)
    worker.on_job = Job.nak
    worker.pull.want(0)
    await publish(bus, b"surplus")
    await worker.until(2)  # each of the two old pulls brings it once, and nobody asks again
    assert worker.pull.outstanding == 0
    assert worker.jobs[1].delivered == 2
    worker.on_job = Job.ack
    worker.pull.want(1)
    await worker.until(3)
    assert worker.payloads == [b"surplus"] * 3


async def test_a_job_that_is_not_acknowledged_goes_to_another_after_ack_wait(bus: Bus, connect: Any) -> None:
    spec = replace(SPEC, ack_wait_s=0.3)
    frozen, other = Worker(bus, spec=spec), Worker(await connect(), spec=spec)
    frozen.on_job = lambda job: frozen.pull.want(0)
    await frozen.pull.start()
    frozen.pull.want(1)
    await publish(bus, b"x")
    await frozen.until(1)
    await other.pull.start()
    other.pull.want(1)
    await other.until(1)
    assert other.jobs[0].delivered == 2
    await frozen.pull.stop()
    await other.pull.stop()


async def test_working_keeps_a_job_and_term_ends_it(bus: Bus) -> None:
    worker = Worker(bus, spec=replace(SPEC, ack_wait_s=0.4), on_job=Job.working)
    await worker.pull.start()
    worker.pull.want(2)
    await publish(bus, b"x")
    await worker.until(1)
    for _ in range(4):
        await asyncio.sleep(0.2)  # the clock under test is the server's
        assert worker.jobs[0].working()
    assert len(worker.jobs) == 1
    assert worker.jobs[0].term("no good")
    await eventually(lambda: holds(bus, "PUNA_QUEUE", 0))
    await worker.pull.stop()


async def test_a_delayed_nak_comes_back_after_the_delay(bus: Bus, worker: Worker) -> None:
    worker.on_job = lambda job: job.nak(0.3) if job.delivered == 1 else job.ack()
    worker.pull.want(1)
    await publish(bus, b"x")
    await worker.until(1)
    began = time.monotonic()
    await worker.until(2)
    assert time.monotonic() - began > 0.25


async def test_the_lowest_priority_number_is_served_first(bus: Bus, connect: Any) -> None:
    cold, warm = Worker(bus), Worker(await connect())
    for worker, priority in ((cold, 5), (warm, 0)):
        await worker.pull.start()
        worker.pull.want(2, priority=priority)
    await eventually(lambda: num_waiting_is(bus, 4))
    for i in range(2):
        await publish(bus, b"%d" % i)
    await warm.until(2)
    assert cold.jobs == []
    cold.pull.want(2, priority=0)
    warm.pull.want(0)
    await cold.pull.stop()
    await warm.pull.stop()


async def num_waiting_is(bus: Bus, count: int) -> bool:
    return await num_waiting(bus) == count


async def num_waiting_between(bus: Bus, least: int, most: int) -> bool:
    return least <= await num_waiting(bus) <= most


async def test_a_better_priority_is_asked_for_at_once_and_going_back_asks_nothing_twice(
    bus: Bus, worker: Worker
) -> None:
    worker.pull.want(2, priority=7)
    await eventually(lambda: worker.pull.standing)
    worker.pull.want(2, priority=0)
    assert worker.pull.outstanding == 4
    worker.pull.want(2, priority=7)
    worker.pull.want(2, priority=0)
    assert worker.pull.outstanding == 4


async def test_a_brief_pull_stands_alone_when_its_priority_changes_and_runs_out_soon(bus: Bus) -> None:
    await ensure(bus, TOPOLOGY)
    pull = WorkPull(bus, SPEC, Job.ack, name="cold", brief_s=4.0)
    await pull.start()
    pull.want(1, priority=5)
    await eventually(lambda: pull.outstanding == 1)
    pull.want(1, priority=2)
    assert pull.outstanding == 1
    pull.want(0)
    await eventually(lambda: pull.outstanding == 0)
    assert await num_waiting(bus) == 0
    await pull.stop()


async def test_the_consumer_is_made_anew_when_the_server_dropped_it(bus: Bus, worker: Worker) -> None:
    worker.pull.want(3)
    await eventually(lambda: worker.pull.standing)
    await bus.js_api(f"CONSUMER.DELETE.PUNA_QUEUE.{SPEC.durable}")
    took_s = await eventually(lambda: num_waiting_is(bus, 3))
    assert took_s < 0.5
    assert worker.pull.outstanding == 3
    await publish(bus, b"x")
    await worker.until(1)


async def test_a_consumer_that_went_while_nobody_asked_is_made_anew_by_the_next_want(bus: Bus, worker: Worker) -> None:
    await eventually(lambda: worker.pull.standing)
    await bus.js_api(f"CONSUMER.DELETE.PUNA_QUEUE.{SPEC.durable}")
    await publish(bus, b"x")
    worker.pull.want(2)
    await worker.until(1, timeout_s=1.0)


async def test_pulls_that_expire_are_asked_again_without_a_failure(
    bus: Bus, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bus.pull.PULL_EXPIRES_S", 1.2)
    monkeypatch.setattr("bus.pull.PULL_HEARTBEAT_S", 0.5)
    worker.pull.want(3)
    await eventually(lambda: worker.pull.standing)
    first = {id(pull): pull.asked_at for pull in worker.pull._pulls._asked}
    await eventually(lambda: all(pull.asked_at > first[id(pull)] for pull in worker.pull._pulls._asked))
    await eventually(lambda: num_waiting_is(bus, 3))
    assert worker.pull.outstanding == 3
    assert "pull failed" not in caplog.text


async def test_no_job_of_a_stream_on_disk_is_lost_over_five_kills(nats_server: Any, bus: Bus) -> None:
    durable = replace(QUEUE, name="DURABLE", subjects=("durable.*",), storage="file")
    await ensure(bus, Topology(streams=(durable,)))
    worker = Worker(bus, spec=replace(SPEC, stream="DURABLE", filter_subject="durable.x", ack_wait_s=0.5))
    await worker.pull.start()
    worker.pull.want(3)
    sent = [b"%d" % i for i in range(250)]
    stored = asyncio.Event()

    async def send() -> None:
        for i, payload in enumerate(sent):
            await publish(bus, payload, "durable.x")
            if i % 50 == 25:
                stored.set()

    sender = asyncio.create_task(send())
    for _ in range(5):
        await stored.wait()
        stored.clear()
        await asyncio.to_thread(nats_server.restart)
    await sender
    await eventually(lambda: set(worker.payloads) == set(sent))
    await worker.pull.stop()


async def test_a_deleted_stream_is_repaired_without_a_spin(bus: Bus, worker: Worker) -> None:
    worker.pull.want(4)
    await eventually(lambda: worker.pull.standing)
    await bus.js_api("STREAM.DELETE.PUNA_QUEUE")
    assert await eventually(lambda: num_waiting_is(bus, 4)) < 1.0


async def test_a_stream_that_stays_away_is_asked_for_ever_more_rarely(bus: Bus) -> None:
    calls: list[float] = []

    async def note() -> None:
        calls.append(time.monotonic())

    pull = WorkPull(bus, replace(SPEC, stream="NOWHERE"), lambda job: None, name="test", repair=note)
    await pull.start()
    pull.want(8)
    await asyncio.sleep(1.0)  # a count within a second of time is what is tested
    assert 2 <= len(calls) <= 12
    await pull.stop()


@pytest.mark.parametrize("round_", range(3))
async def test_a_server_killed_and_restarted_is_asked_anew_at_once(
    nats_server: Any, bus: Bus, worker: Worker, round_: int
) -> None:
    worker.pull.want(4)
    await eventually(lambda: worker.pull.standing)
    nats_server.kill()
    await eventually(lambda: not bus.connected)
    assert worker.pull.outstanding == 0
    nats_server.start()
    await bus.ready(10)
    assert await eventually(lambda: worker.pull.standing) < 0.3
    assert await eventually(lambda: num_waiting_is(bus, 4)) < 0.3
    await publish(bus, b"after")
    await worker.until(1)


async def test_a_late_acknowledgement_does_not_touch_the_stream_that_was_made_since(
    nats_server: Any, bus: Bus, worker: Worker
) -> None:
    worker.on_job = lambda job: None
    worker.pull.want(1)
    await publish(bus, b"before")
    await worker.until(1)
    nats_server.kill()
    await eventually(lambda: not bus.connected)
    assert worker.jobs[0].ack() is False
    nats_server.start()
    await bus.ready(10)
    await publish(bus, b"after")
    await worker.until(2)
    old, new = worker.jobs
    assert old.stream_sequence == new.stream_sequence == 1
    assert old.ack() is False
    assert new.working() is True


async def test_a_job_of_a_consumer_that_outlived_the_reconnect_can_be_acknowledged(nats_server: Any, bus: Bus) -> None:
    durable = replace(QUEUE, name="DURABLE", subjects=("durable.*",), storage="file")
    await ensure(bus, Topology(streams=(durable,)))
    spec = replace(SPEC, stream="DURABLE", filter_subject="durable.x", ack_wait_s=30.0)
    worker = Worker(bus, spec=spec, on_job=lambda job: None)
    await worker.pull.start()
    worker.pull.want(1)
    await bus.js_publish("durable.x", b"x")
    await worker.until(1)
    session = bus.session
    nats_server.restart()
    await eventually(lambda: bus.session > session and bus.connected and worker.pull.standing)
    assert worker.jobs[0].ack() is True
    await eventually(lambda: holds(bus, "DURABLE", 0))
    await worker.pull.stop()


async def test_a_frozen_server_that_thaws_leaves_neither_too_few_nor_doubled_pulls(
    nats_server: Any, bus: Bus, worker: Worker
) -> None:
    worker.pull.want(2)
    await eventually(lambda: worker.pull.standing)
    nats_server.pause()
    await asyncio.sleep(6.0)  # longer than the heartbeats may be missed, shorter than the connection lives
    nats_server.resume()
    await publish(bus, b"x")
    await worker.until(1)
    await eventually(lambda: worker.pull.standing)
    await eventually(lambda: num_waiting_between(bus, 2, 4))
    assert 2 <= worker.pull.outstanding <= 4


async def test_silence_of_the_server_is_noticed_and_asked_anew(bus: Bus, worker: Worker) -> None:
    worker.pull.want(2)
    await eventually(lambda: worker.pull.standing)
    for pull in list(worker.pull._pulls._asked):  # the server forgets a pull whose inbox is gone, and says nothing
        assert pull.subscription is not None
        pull.subscription.close()
    await publish(bus, b"x")
    await worker.until(1, timeout_s=8.0)
    assert worker.payloads == [b"x"]


async def test_a_handler_that_fails_costs_its_own_job_only(bus: Bus, worker: Worker) -> None:
    def fail(job: Job) -> None:
        worker.arrived.set()
        raise RuntimeError("boom")

    worker.on_job = fail
    worker.pull.want(1)
    await publish(bus, b"bad")
    await worker.until(1)
    worker.on_job = Job.ack
    await publish(bus, b"good")
    await worker.until(2)
    assert worker.payloads == [b"bad", b"good"]


async def test_started_and_stopped_twice_it_asks_nothing_afterwards(bus: Bus) -> None:
    worker = Worker(bus)
    worker.pull.want(2)
    await worker.pull.start()
    await worker.pull.start()
    await eventually(lambda: worker.pull.standing)
    await worker.pull.stop()
    await worker.pull.stop()
    await publish(bus, b"x")
    await eventually(lambda: num_waiting_is(bus, 0))
    assert worker.jobs == []
    await worker.pull.start()
    await worker.until(1)
    assert worker.jobs[0].payload == b"x"
    await worker.pull.stop()


async def test_twenty_workers_that_start_at_once_share_one_consumer(connect: Any, bus: Bus) -> None:
    workers = [Worker(await connect()) for _ in range(20)]
    await asyncio.gather(*(worker.pull.start() for worker in workers))
    for worker in workers:
        worker.pull.want(1)
    await eventually(lambda: num_waiting_is(bus, 20))
    for i in range(20):
        await publish(bus, b"%d" % i)
    await eventually(lambda: sum(len(worker.jobs) for worker in workers) == 20)
    await asyncio.gather(*(worker.pull.stop() for worker in workers))


@pytest.mark.parametrize(("count", "priority"), [(-1, 0), (1, -1), (1, 10)])
async def test_a_want_that_makes_no_sense_is_refused(bus: Bus, count: int, priority: int) -> None:
    with pytest.raises(ValueError, match="want"):
        WorkPull(bus, SPEC, lambda job: None, name="test").want(count, priority=priority)


async def test_ensure_consumer_has_a_stable_identity(bus: Bus) -> None:
    assert await ensure_consumer(bus, SPEC) == await ensure_consumer(bus, SPEC)


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.S.c.2.7.9.1795257107270445533.4",
        "$JS.ACK.hub.hash.S.c.2.7.9.1795257107270445533.4",
        "$JS.ACK._.hash.S.c.2.7.9.1795257107270445533.4.random",
    ],
)
def test_both_forms_of_a_delivery_are_read(reply: str) -> None:
    found = parse_delivery(reply)
    assert found is not None
    assert (found.stream, found.consumer, found.delivered, found.pending) == ("S", "c", 2, 4)
    assert (found.stream_sequence, found.consumer_sequence) == (7, 9)
    assert found.published_at == pytest.approx(1795257107.27)


@pytest.mark.parametrize(
    "reply", ["", "_INBOX.x", "$JS.ACK.S.c.1.2", "$JS.ACK.S.c.a.b.c.d.e", "$JS.ACK.1.2.3.4.5.6.7.8"]
)
def test_what_is_no_delivery_is_none(reply: str) -> None:
    assert parse_delivery(reply) is None
