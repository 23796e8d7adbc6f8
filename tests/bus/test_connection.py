"""The bus on a server that behaves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import uvloop

from bus.connection import Bus, Message
from bus.errors import BusDenied, BusRefused, BusSlow, JetStreamError, NoResponders, NoStream, WrongRevision
from bus.settings import NatsSettings
from bus.wire import CROWD_COMMANDS
from schemas.errors import BodyTooLarge, BusUnavailable, DeadlineExceeded, InvalidName, LineFull

USERS = 'authorization { users: [ { user: u, password: p, permissions: { publish: "%s", subscribe: "%s" } } ] }'
QUEUE = {
    "name": "LINE",
    "subjects": ["line.*"],
    "storage": "memory",
    "retention": "workqueue",
    "discard": "new",
    "discard_new_per_subject": True,
    "max_msgs_per_subject": 2,
    "allow_msg_ttl": True,
}


async def test_a_request_is_answered_with_headers_and_payload(bus: Bus) -> None:
    bus.subscribe("echo.*", lambda m: bus.publish(m.reply, m.payload + m.subject.encode(), headers=m.headers))
    answer = await bus.request("echo.a", b"hi ", headers={"Puna-Request": "1 é"}, timeout_s=2)
    assert answer.payload == b"hi echo.a"
    assert answer.headers == {"Puna-Request": "1 é"}


async def test_nobody_there_is_told_at_once(bus: Bus) -> None:
    began = time.monotonic()
    with pytest.raises(NoResponders, match=r"nobody\.here"):
        await bus.request("nobody.here", b"", timeout_s=5)
    assert time.monotonic() - began < 1


async def test_no_answer_is_a_deadline_and_leaves_nothing_behind(bus: Bus) -> None:
    bus.subscribe("mute", lambda _: None)
    with pytest.raises(DeadlineExceeded):
        await bus.request("mute", b"", timeout_s=0.05)
    assert not bus._replies._waiting


async def test_raw_handlers_get_subject_reply_and_payload_in_order(bus: Bus, heard: Any) -> None:
    bus.subscribe_raw("frames.*", heard)
    for number in range(500):
        bus.publish(f"frames.{number % 3}", b"%d" % number, reply="r.1" if number == 7 else "")
    bus.publish("frames.h", b"with headers", headers={"A": "b"})
    items = await heard.count(501)
    assert [int(payload) for _, _, payload in items[:500]] == list(range(500))
    assert items[7] == ("frames.1", "r.1", b"7")
    assert items[500] == ("frames.h", "", b"with headers")


async def test_publishes_of_one_loop_tick_go_out_in_one_write(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = bus._link.wire
    assert wire is not None
    writes: list[bytes] = []

    class Recorder:
        def write(self, data: bytes) -> None:
            writes.append(data)

    with monkeypatch.context() as patch:
        patch.setattr(wire, "_transport", Recorder())
        for _ in range(100):
            bus.publish("a", b"b")
        flushed = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(flushed.set_result, None)
        await flushed
    assert writes == [b"PUB a 1\r\nb\r\n" * 100]


async def test_with_a_join_window_the_first_write_goes_at_once_and_the_next_wait_together(
    nats_server: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await Bus.connect(NatsSettings(url=nats_server.url), name="joined", join_s=0.05)
    wire = bus._link.wire
    assert wire is not None
    with monkeypatch.context() as patch:
        patch.setattr(wire, "_transport", type("Recorder", (), {"write": staticmethod(heard)}))
        patch.setattr(wire, "_flushed_at", 0.0)
        patch.setattr(wire, "_window_at", 0.0)
        patch.setattr("bus.wire.CROWD_COMMANDS", 0)
        bus.publish("a", b"first")
        assert await heard.count(1) == [b"PUB a 5\r\nfirst\r\n"]
        began = time.monotonic()
        bus.publish("a", b"2")
        await asyncio.sleep(0)
        bus.publish("a", b"3")
        assert (await heard.count(2))[1] == b"PUB a 1\r\n2\r\nPUB a 1\r\n3\r\n"
        assert 0.03 < time.monotonic() - began < 1
    await bus.close()


async def test_with_a_join_window_nothing_waits_while_little_is_sent(
    nats_server: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await Bus.connect(NatsSettings(url=nats_server.url), name="joined", join_s=30.0)
    wire = bus._link.wire
    assert wire is not None
    with monkeypatch.context() as patch:
        patch.setattr(wire, "_transport", type("Recorder", (), {"write": staticmethod(heard)}))
        for number in range(CROWD_COMMANDS - 1):
            bus.publish("a", b"%d" % number)
            assert (await heard.count(number + 1))[number] == b"PUB a 1\r\n%d\r\n" % number
    await bus.close()


async def test_what_a_handler_raised_is_logged_without_its_text_and_not_for_each_message(
    bus: Bus, heard: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(subject: str, _reply: str, payload: bytes) -> None:
        heard(subject)
        raise ValueError(f"could not read {payload!r}")

    bus.subscribe_raw("x", broken)
    for _ in range(50):
        bus.publish("x", b"a secret prompt")
    await heard.count(50)
    lines = [record for record in caplog.records if record.message.startswith("handler failed")]
    assert len(lines) == 1
    assert "ValueError" in lines[0].message
    assert "in broken" in lines[0].message
    assert "secret prompt" not in caplog.text


async def test_a_handler_that_raises_is_counted_and_goes_on(bus: Bus, heard: Any) -> None:
    def broken(message: Message) -> None:
        heard(message.payload)
        raise asyncio.CancelledError if message.payload == b"1" else ValueError("mine")

    bus.subscribe("x", broken)
    for payload in (b"1", b"2", b"3"):
        bus.publish("x", payload)
    assert await heard.count(3) == [b"1", b"2", b"3"]
    assert bus.faults == 3
    assert bus.connected


async def test_a_queue_group_gives_each_message_to_one_member(bus: Bus, heard: Any) -> None:
    for _ in range(3):
        bus.subscribe("work", heard, queue="workers")
    for _ in range(30):
        bus.publish("work")
    await bus.flush(2)
    assert len(heard.items) == 30


async def test_a_closed_subscription_is_silent(bus: Bus, heard: Any) -> None:
    subscription = bus.subscribe("x", heard)
    bus.publish("x")
    await heard.count(1)
    subscription.close()
    subscription.close()
    bus.publish("x")
    await bus.flush(2)
    assert len(heard.items) == 1


async def test_too_large_is_refused_before_it_can_end_the_connection(bus: Bus) -> None:
    headers = {"A": "b"}
    with pytest.raises(BodyTooLarge):
        bus.publish("x", b"x" * bus.max_payload, headers=headers)
    bus.publish("x", b"x" * bus.max_payload)
    await bus.flush(2)
    assert bus.session == 1


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPING"])
async def test_a_bad_subject_is_refused(bus: Bus, subject: str) -> None:
    with pytest.raises(InvalidName):
        bus.publish(subject)
    with pytest.raises(InvalidName):
        bus.subscribe(subject, lambda _: None)
    await bus.flush(2)
    assert bus.session == 1


async def test_gone_is_told_for_each_token_and_only_when_nobody_listens(bus: Bus, heard: Any) -> None:
    watch, other = bus.watch_gone(heard), bus.watch_gone(lambda _: pytest.fail("not this one's token"))
    bus.subscribe("gateway.1", lambda _: None)
    bus.publish("gateway.1", b"frame", reply=watch.reply("there"))
    bus.publish("gateway.2", b"frame", reply=watch.reply("gone_1"))
    bus.publish("gateway.3", b"frame", reply=watch.reply("gone-2"))
    assert sorted(await heard.count(2)) == ["gone-2", "gone_1"]
    await bus.flush(2)
    assert len(heard.items) == 2
    assert other.reply("t") != watch.reply("t")


async def test_jetstream_publishes_are_acked_deduplicated_and_refused_when_full(bus: Bus) -> None:
    await bus.js_api("STREAM.CREATE.LINE", QUEUE)
    first = await bus.js_publish("line.a", b"1", msg_id="m1", ttl_s=1.2, headers={"X": "y"})
    again = await bus.js_publish("line.a", b"1", msg_id="m1")
    assert (first.stream, first.sequence, first.duplicate) == ("LINE", 1, False)
    assert (again.sequence, again.duplicate) == (1, True)
    stored = await bus.js_api("STREAM.MSG.GET.LINE", {"seq": 1})
    assert "hdrs" in stored["message"]
    await bus.js_publish("line.a", b"2")
    with pytest.raises(LineFull, match="per subject"):
        await bus.js_publish("line.a", b"3")
    await bus.js_publish("line.b", b"another line has its own bound")


async def test_jetstream_errors_are_told_apart(bus: Bus) -> None:
    with pytest.raises(NoStream):
        await bus.js_publish("no.stream", b"")
    with pytest.raises(JetStreamError, match="10059") as caught:
        await bus.js_api("STREAM.INFO.NOPE")
    assert (caught.value.status, caught.value.err_code) == (404, 10059)
    await bus.js_api("STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "storage": "memory"})
    with pytest.raises(WrongRevision):
        await bus.js_publish("s", b"", headers={"Nats-Expected-Last-Subject-Sequence": "5"})


async def test_jetstream_that_is_off_is_said_so(new_nats_server: Any, new_bus: Any) -> None:
    bus = await new_bus(new_nats_server(jetstream=False))
    with pytest.raises(BusUnavailable, match="-js"):
        await bus.js_api("INFO")


async def test_session_callbacks_run_in_order_and_late_ones_at_once(bus: Bus, heard: Any) -> None:
    async def call(name: str) -> None:
        await bus.flush(2)
        heard(name)

    for name in ("first", "second"):
        bus.on_session(lambda name=name: call(name))
    assert await heard.count(2) == ["first", "second"]
    bus.on_session(lambda: call("late"))
    assert (await heard.count(3))[2] == "late"


async def test_a_session_callback_that_fails_is_tried_again_before_the_next(bus: Bus, heard: Any) -> None:
    async def sometimes() -> None:
        heard("try")
        if len(heard.items) < 3:
            raise BusUnavailable("not yet")

    async def after() -> None:
        heard("after")

    bus.on_session(sometimes)
    bus.on_session(after)
    assert await heard.count(4) == ["try", "try", "try", "after"]


async def test_no_server_is_told_with_the_address_and_what_to_do(new_bus: Any) -> None:
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1\b.*nats-server"):
        await new_bus("nats://u:hidden@127.0.0.1:1", timeout_s=0.3)


async def test_wrong_credentials_are_told_at_once_and_never_shown(new_nats_server: Any, new_bus: Any) -> None:
    server = new_nats_server("authorization { user: u, password: right }")
    began = time.monotonic()
    with pytest.raises(BusRefused, match="Authorization Violation") as caught:
        await new_bus(server, user="u", password="wr0ng-one")
    assert time.monotonic() - began < 2
    assert "wr0ng-one" not in str(caught.value)


@pytest.mark.parametrize("given", [{"token": "t0ken"}, {"user": "t0ken"}])
async def test_a_token_opens_the_door(new_nats_server: Any, new_bus: Any, given: dict[str, str]) -> None:
    server = new_nats_server("authorization { token: t0ken }")
    assert (await new_bus(server, **given)).connected
    assert (await new_bus(server.url.replace("//", "//t0ken@"))).connected


async def test_a_password_in_the_address_opens_the_door(new_nats_server: Any, new_bus: Any) -> None:
    server = new_nats_server('authorization { user: u, password: "p@ss" }')
    assert (await new_bus(server.url.replace("//", "//u:p%40ss@"))).connected


async def test_a_buffer_over_its_limit_refuses_instead_of_growing(nats_server: Any, new_bus: Any) -> None:
    bus = await new_bus(nats_server, pending_limit_bytes=1 << 20)
    nats_server.pause()
    try:
        with pytest.raises(BusSlow):
            for _ in range(200):
                bus.publish("x", bytes(500_000))
                await asyncio.sleep(0)
    finally:
        nats_server.resume()
    await bus.flush(10)
    bus.publish("x", b"room again")


async def test_a_denied_publish_fails_its_request_at_once(new_nats_server: Any, new_bus: Any) -> None:
    server = new_nats_server(USERS % ("ok.>", ">"))
    bus = await new_bus(server, user="u", password="p")
    began = time.monotonic()
    with pytest.raises(BusDenied, match=r"publish to no\.way"):
        await bus.request("no.way", b"", timeout_s=10)
    assert time.monotonic() - began < 2
    assert list(bus.denials) == ["no.way"]
    with pytest.raises(BusDenied):
        await bus.js_publish("no.way", b"", timeout_s=10)


async def test_a_denied_subscription_is_known_and_a_denied_inbox_fails_requests(
    new_nats_server: Any, new_bus: Any
) -> None:
    server = new_nats_server(USERS % (">", "a"))
    bus = await new_bus(server, user="u", password="p")
    good, bad = bus.subscribe("a", lambda _: None), bus.subscribe("b", lambda _: None, queue="q")
    await bus.flush(2)
    assert good.denied is None
    assert bad.denied is not None
    with pytest.raises(BusDenied, match="hear no answers"):
        await bus.request("a", b"", timeout_s=10)


async def test_closing_sends_what_was_published_and_ends_all_tasks(nats_server: Any, new_bus: Any, heard: Any) -> None:
    listener, bus = await new_bus(nats_server), await new_bus(nats_server, name="short-lived")
    listener.subscribe_raw("x", heard)
    await listener.flush(2)
    for _ in range(1000):
        bus.publish("x", bytes(100))
    await bus.close()
    await bus.close()
    await heard.count(1000)
    assert not bus.connected
    with pytest.raises(BusUnavailable):
        bus.publish("x")
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("short-lived")]


def test_the_same_bus_runs_on_uvloop(nats_server: Any) -> None:
    async def walk() -> None:
        bus = await Bus.connect(NatsSettings(url=nats_server.url), name="uv")
        bus.subscribe("echo", lambda m: bus.publish(m.reply, m.payload))
        assert (await bus.request("echo", bytes(900_000), timeout_s=5)).payload == bytes(900_000)
        nats_server.restart()
        while bus.session < 2 or not bus.connected:
            await asyncio.sleep(0)
        assert (await bus.request("echo", b"again", timeout_s=5)).payload == b"again"
        await bus.close()

    uvloop.run(walk())
