"""Storing a message without a task: the end is told by a call."""

from __future__ import annotations

import pytest

from bus.errors import NoStream
from bus.topology import ensure
from schemas.errors import BodyTooLarge, BusUnavailable, LineFull
from schemas.topology import StreamSpec, Topology

LINES = Topology(
    (
        StreamSpec(
            name="LINES",
            subjects=("lines.*",),
            storage="memory",
            discard="new",
            discard_new_per_subject=True,
            max_msgs_per_subject=2,
        ),
    )
)


@pytest.fixture
async def bus(new_bus, nats_server):
    one = await new_bus(nats_server)
    await ensure(one, LINES)
    return one


def store(bus, heard, subject="lines.a", payload=b"x", **more):
    return bus.js_publish_nowait(subject, payload, on_ack=heard, on_error=heard, **more)


async def test_the_ack_is_told_with_its_sequence_and_a_repetition_as_one(bus, heard) -> None:
    store(bus, heard, msg_id="1")
    store(bus, heard, msg_id="1")
    first, again = await heard.count(2)
    assert (first.stream, first.sequence, first.duplicate) == ("LINES", 1, False)
    assert (again.sequence, again.duplicate) == (1, True)


async def test_a_full_line_and_a_missing_stream_are_told_as_errors(bus, heard) -> None:
    for _ in range(3):
        store(bus, heard)
    assert isinstance((await heard.count(3))[2], LineFull)
    store(bus, heard, "nobody.takes")
    assert isinstance((await heard.count(4))[3], NoStream)


async def test_who_forgets_hears_nothing(bus, heard, new_heard) -> None:
    nothing = new_heard()
    bus.forget(store(bus, nothing))
    store(bus, heard)
    await heard.count(1)
    assert not nothing.items


async def test_a_lost_session_is_told_to_whoever_waits(bus, heard, nats_server) -> None:
    nats_server.pause()
    store(bus, heard)
    nats_server.process.kill()
    assert isinstance((await heard.count(1))[0], BusUnavailable)


async def test_what_cannot_be_sent_is_raised_and_told_to_nobody(bus, heard) -> None:
    with pytest.raises(BodyTooLarge):
        store(bus, heard, payload=b"x" * (bus.max_payload + 1))
    assert not heard.items
