"""Questions without a task, and commands that wait for company, on a real nats-server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.connection import Bus, Message
from bus.errors import NoResponders, NoStream
from bus.settings import NatsSettings
from schemas.errors import BusUnavailable, InvalidName


class Ear:
    """What was told, and when something is."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.errors: list[Any] = []
        self._told = asyncio.Event()

    def answer(self, answer: Any) -> None:
        self.answers.append(answer)
        self._told.set()

    def error(self, error: Any) -> None:
        self.errors.append(error)
        self._told.set()

    async def told(self) -> None:
        async with asyncio.timeout(5):
            await self._told.wait()


async def test_an_answer_is_told_once_without_a_task(bus: Bus) -> None:
    def answer(message: Message) -> None:
        bus.publish(message.reply, b"first")
        bus.publish(message.reply, b"second")

    ear = Ear()
    bus.subscribe("question", answer)
    bus.ask("question", b"?", on_answer=ear.answer, on_error=ear.error)
    await ear.told()
    await bus.flush(2)
    assert [message.payload for message in ear.answers] == [b"first"]
    assert ear.errors == []


async def test_a_question_that_nobody_hears_is_told(bus: Bus) -> None:
    ear = Ear()
    bus.ask("nowhere", on_answer=ear.answer, on_error=ear.error)
    await ear.told()
    assert isinstance(ear.errors[0], NoResponders)


async def test_a_lost_connection_is_told_to_who_asked(bus: Bus, nats_server: Any) -> None:
    ear = Ear()
    bus.subscribe("silence", lambda _: None)
    bus.ask("silence", on_answer=ear.answer, on_error=ear.error)
    nats_server.kill()
    await ear.told()
    assert isinstance(ear.errors[0], BusUnavailable)


async def test_a_forgotten_question_is_told_nothing(bus: Bus) -> None:
    ear = Ear()
    bus.subscribe("question", lambda message: bus.publish(message.reply, b"!"))
    token = bus.ask("question", on_answer=ear.answer, on_error=ear.error)
    bus.forget(token)
    bus.forget(token)
    await bus.request("question", timeout_s=2)
    await bus.flush(2)
    assert (ear.answers, ear.errors) == ([], [])


async def test_a_question_that_cannot_be_sent_is_raised_and_told_to_nobody(bus: Bus) -> None:
    ear = Ear()
    with pytest.raises(InvalidName):
        bus.ask("two words", on_answer=ear.answer, on_error=ear.error)
    assert (ear.answers, ear.errors) == ([], [])


async def test_a_publish_into_no_stream_is_told_as_such(bus: Bus) -> None:
    ear = Ear()
    bus.js_publish_nowait("no.stream", b"", msg_id="1", ttl_s=1, on_ack=ear.answer, on_error=ear.error)
    await ear.told()
    assert isinstance(ear.errors[0], NoStream)


async def test_a_lazy_message_leaves_alone_in_time(bus: Bus) -> None:
    ear = Ear()
    bus.subscribe("s", ear.answer)
    await bus.flush(2)
    bus.publish("s", b"1", lazy=True)
    await ear.told()
    assert ear.answers[0].payload == b"1"


async def test_a_lazy_message_keeps_its_place_before_what_is_sent_next(bus: Bus) -> None:
    ear = Ear()
    bus.subscribe("s", ear.answer)
    bus.publish("s", b"1", lazy=True)
    bus.publish("s", b"2", lazy=True)
    bus.publish("s", b"3", now=True)
    bus.publish("s", b"4", lazy=True)
    await bus.flush(2)
    assert [message.payload for message in ear.answers] == [b"1", b"2", b"3", b"4"]


async def test_a_lazy_message_is_sent_before_the_connection_is_closed(bus: Bus, new_bus: Any, nats_server: Any) -> None:
    ear = Ear()
    bus.subscribe("s", ear.answer)
    await bus.flush(2)
    other = await new_bus(nats_server, name="other")
    other.publish("s", b"last", lazy=True)
    await other.close()
    await ear.told()
    assert ear.answers[0].payload == b"last"


async def test_with_a_join_window_nothing_is_lost_or_disordered_however_much_is_sent(nats_server: Any) -> None:
    settings = NatsSettings.model_validate({"url": nats_server.url})
    joining = await Bus.connect(settings, name="joining", join_s=0.001)
    ear = Ear()
    joining.subscribe("s", ear.answer)
    for number in range(300):
        joining.publish("s", b"%d" % number, now=number % 7 == 0, lazy=number % 5 == 0)
        await asyncio.sleep(0)
    await joining.flush(2)
    assert [int(message.payload) for message in ear.answers] == list(range(300))
    await joining.close()
