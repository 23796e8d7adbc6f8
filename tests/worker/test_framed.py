"""A framed reply on a real nats-server, with the clock in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.connection import Bus, Message
from bus.settings import NatsSettings
from bus.watched import Tasks
from schemas.errors import EngineFailed, PunaError
from schemas.frame import Frame, decode_frame
from schemas.request import RequestHead
from worker.framed import AWAY_LIMIT_S, CREDIT_CANCEL_S, CREDIT_PAUSE_S, LINGER_S, FramedReply
from worker.offer import ACCEPT_WAIT_S, accept_of
from worker.replies import Replies
from worker.reply import Summary
from worker.window import WINDOW_LIMIT_BYTES
from worker.work import Claim, Work

SUBJECT = "puna.reply.g.s1"


class Engine:
    """The engine's side: what a reply asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: PunaError | None = None
        self.abandoned = asyncio.Event()

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def abandon(self, error: PunaError) -> None:
        self.error = error
        self.abandoned.set()


class Stage:
    """A reply, its reader, and time."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.now = 100.0
        self.word = b"go"
        self.frames: list[Frame] = []
        self.more = asyncio.Event()
        self.flow = Engine()
        self.tasks = Tasks()
        self.replies = Replies(bus, "n1", self.tasks, lambda: self.now)
        self.reader = bus.subscribe("puna.reply.g.*", self.heard)

    def heard(self, message: Message) -> None:
        self.frames.append(decode_frame(message.payload))
        if message.payload.startswith(b"accept") and self.word:
            self.bus.publish(message.reply, self.word)
        self.more.set()

    def reply(self, subject: str = SUBJECT) -> FramedReply:
        head = RequestHead("chat", "r1", subject, framed=True)
        work = Work(head, "m", b"{}", "node", self.now, Claim(None, self.now))
        made = self.replies.make(work, accept_of("n1"))
        made.begin(self.flow)
        assert isinstance(made, FramedReply)
        return made

    async def got(self, count: int) -> list[str]:
        async with asyncio.timeout(5):
            while len(self.frames) < count:
                self.more.clear()
                await self.more.wait()
        return [frame.kind.decode() for frame in self.frames]

    async def flowing(self) -> FramedReply:
        """A reply whose requester has said `go`, after its frames 0 and 1."""
        reply = self.reply()
        reply.open(200, "text/event-stream")
        await self.got(2)
        await self.bus.flush(2)
        return reply

    async def disconnected(self) -> None:
        async with asyncio.timeout(5):
            while self.bus.connected:
                await asyncio.sleep(0.01)

    async def told(self) -> None:
        async with asyncio.timeout(5):
            await self.flow.abandoned.wait()

    async def credit(self, epoch: int, seq: int) -> None:
        self.bus.publish("puna.node.n1.credit", b"s1 %d %d" % (epoch, seq))
        await self.bus.flush(2)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.replies.tick(self.now)


@pytest.fixture
async def stage(nats_server: Any) -> AsyncIterator[Stage]:
    bus = await Bus.connect(NatsSettings.model_validate({"url": nats_server.url}), name="test")
    made = Stage(bus)
    yield made
    await made.tasks.stop()
    await bus.close()


async def test_frames_follow_the_accept_at_once(stage: Stage) -> None:
    stage.word = b""
    reply = stage.reply()
    reply.open(200, "text/event-stream")
    reply.data(b"data: 1\n\n")
    assert await stage.got(3) == ["accept", "open", "data"]
    assert [frame.seq for frame in stage.frames] == [0, 1, 2]


async def test_an_accept_leaves_alone_where_the_engine_is_slow(stage: Stage) -> None:
    stage.reply()
    assert await stage.got(1) == ["accept"]


async def test_an_error_before_anything_was_sent_is_all_that_is_said(stage: Stage, nats_server: Any) -> None:
    nats_server.stop()
    await stage.disconnected()
    reply = stage.reply()
    reply.open(200, "text/event-stream")
    reply.error(EngineFailed("gone"))
    nats_server.start()
    assert await stage.got(1) == ["error"]
    assert reply.data_frames == 0


async def test_an_accept_that_was_lost_with_the_connection_is_asked_again_and_waited_for(
    stage: Stage, nats_server: Any
) -> None:
    nats_server.stop()
    await stage.disconnected()
    reply = stage.reply()
    reply.open(200, "text/event-stream")
    nats_server.start()
    await stage.bus.ready(5)
    stage.pass_time(0.1)
    assert await stage.got(2) == ["accept", "open"]


async def test_a_reader_that_does_not_answer_loses_the_work(stage: Stage) -> None:
    stage.word = b""
    stage.reply()
    await stage.got(1)
    stage.pass_time(ACCEPT_WAIT_S - 0.1)
    assert stage.flow.error is None
    stage.pass_time(0.2)
    assert stage.flow.error is not None
    assert stage.flow.error.code == "cancelled"


async def test_work_whose_requester_is_nowhere_is_abandoned(stage: Stage) -> None:
    stage.reader.close()
    stage.reply()
    await stage.told()
    assert stage.flow.error is not None
    assert stage.flow.error.code == "cancelled"


async def test_a_reply_subject_that_is_none_ends_the_work_at_once(stage: Stage) -> None:
    stage.reply(subject="puna.reply g")
    assert stage.flow.error is not None


async def test_a_connection_that_stays_away_ends_work_that_was_never_accepted(stage: Stage, nats_server: Any) -> None:
    nats_server.stop()
    await stage.disconnected()
    stage.reply()
    stage.pass_time(AWAY_LIMIT_S + 0.1)
    assert stage.flow.error is not None
    assert stage.flow.error.code == "bus_unavailable"


async def test_credit_that_stays_away_pauses_and_then_ends_the_work(stage: Stage) -> None:
    await stage.flowing()
    stage.pass_time(CREDIT_PAUSE_S + 0.1)
    assert stage.flow.asked == ["pause"]
    await stage.credit(1, 2)
    assert stage.flow.asked == ["pause", "resume"]
    stage.pass_time(CREDIT_CANCEL_S + 0.1)
    assert stage.flow.error is not None
    assert stage.flow.error.code == "cancelled"


async def test_a_later_epoch_in_a_credit_line_means_that_we_were_given_up(stage: Stage) -> None:
    await stage.flowing()
    await stage.credit(2, 0)
    assert stage.flow.error is not None


async def test_a_full_window_stops_the_engine_until_it_is_credited(stage: Stage) -> None:
    reply = await stage.flowing()
    for _ in range(4):
        reply.data(b"x" * (WINDOW_LIMIT_BYTES // 4))
    assert stage.flow.asked == ["pause"]
    await stage.got(6)
    await stage.credit(1, 6)
    assert stage.flow.asked == ["pause", "resume"]


async def test_silence_is_filled_with_pings(stage: Stage) -> None:
    await stage.flowing()
    stage.pass_time(0.5)
    stage.pass_time(0.6)
    assert await stage.got(3) == ["accept", "open", "ping"]


async def test_a_reader_that_is_gone_ends_the_work(stage: Stage) -> None:
    reply = await stage.flowing()
    stage.reader.close()
    reply.data(b"x")
    await stage.bus.flush(2)
    assert stage.flow.error is not None


async def test_what_was_not_credited_is_sent_again_in_a_new_session(stage: Stage, nats_server: Any) -> None:
    reply = await stage.flowing()
    for number in range(3):
        reply.data(b"%d" % number)
    await stage.got(5)
    await stage.credit(1, 3)
    nats_server.restart()
    async with asyncio.timeout(5):
        while stage.bus.session < 2 or reply.away:
            await asyncio.sleep(0.01)
    reply.data(b"3")
    await stage.bus.flush(2)
    again = [frame.seq for frame in stage.frames[5:]]
    assert [seq for index, seq in enumerate(again) if seq not in again[:index]] == [3, 4, 5]


async def test_an_ended_reply_is_kept_for_a_while_and_then_forgotten(stage: Stage) -> None:
    reply = await stage.flowing()
    reply.end(Summary())
    await stage.got(3)
    stage.pass_time(LINGER_S - 0.5)
    assert len(stage.replies) == 1
    stage.pass_time(1)
    assert len(stage.replies) == 0
