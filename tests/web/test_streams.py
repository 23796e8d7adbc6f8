"""Responses that are written as they come: what leaves when, and what happens when the client does not take it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"


async def begin(serve, held, **options):
    """A stream that is under way, and its client."""
    wire = await (await serve(held, **options)).dial()
    wire.send(GET)
    return wire, await held.next()


async def test_chunks_arrive_and_the_connection_serves_the_next_request(serve, held):
    wire, exchange = await begin(serve, held)
    exchange.start(200, content_type="text/event-stream", headers=[("x-accel-buffering", "no")])
    exchange.write(b"data: 1\n\n")
    status, headers = await wire.head()
    assert (status, headers["content-type"], headers["x-accel-buffering"]) == (200, "text/event-stream", "no")
    assert await wire.chunk() == b"data: 1\n\n"
    exchange.write(b"")
    exchange.write(b"x" * 300)
    assert await wire.chunk() == b"x" * 300
    exchange.finish()
    assert await wire.chunk() == b""
    wire.send(GET)
    (await held.next()).respond(200, b"next")
    assert (await wire.answer()).body == b"next"


async def test_the_head_goes_out_though_nothing_is_written(serve, held):
    wire, exchange = await begin(serve, held)
    exchange.start(200, content_type="text/event-stream")
    assert (await wire.head())[0] == 200
    exchange.finish()
    assert await wire.chunk() == b""


class Sends:
    """Counts what a connection hands to its transport."""

    def __init__(self, exchange) -> None:
        self.sent: list[bytes] = []
        outlet = exchange._outlet
        self._transport = outlet._transport
        outlet._transport = self

    def write(self, data: bytes) -> None:
        self.sent.append(bytes(data))
        self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()


async def test_the_head_and_the_first_chunk_are_one_send(serve, held):
    wire, exchange = await begin(serve, held)
    sends = Sends(exchange)
    exchange.start(200, content_type="text/event-stream")
    exchange.write(b"first")
    assert len(sends.sent) == 1
    assert sends.sent[0].endswith(b"\r\n\r\n5\r\nfirst\r\n")
    await wire.head()
    assert await wire.chunk() == b"first"
    assert len(sends.sent) == 1


async def test_a_lone_chunk_goes_at_once_and_those_that_follow_closely_leave_together(serve, held):
    wire, exchange = await begin(serve, held, server={"join_window_s": 0.05})
    exchange.start(200, content_type="text/event-stream")
    exchange.write(b"head")
    await wire.head()
    await wire.chunk()
    await asyncio.sleep(0.06)
    sends = Sends(exchange)
    exchange.write(b"1")
    assert sends.sent == [b"1\r\n1\r\n"]
    exchange.write(b"2")
    exchange.write(b"3")
    assert len(sends.sent) == 1
    assert exchange.buffered_bytes >= 12
    assert [await wire.chunk() for _ in range(3)] == [b"1", b"2", b"3"]
    assert sends.sent[1:] == [b"1\r\n2\r\n1\r\n3\r\n"]


async def test_finish_does_not_wait_for_the_window_and_keeps_the_order(serve, held):
    wire, exchange = await begin(serve, held, server={"join_window_s": 60})
    exchange.start(200, content_type="text/event-stream")
    for part in (b"1", b"2", b"3"):
        exchange.write(part)
    exchange.finish()
    await wire.head()
    assert [await wire.chunk() for _ in range(4)] == [b"1", b"2", b"3", b""]


async def test_without_a_window_every_write_goes_at_once(serve, held):
    _, exchange = await begin(serve, held, server={"join_window_s": 0})
    exchange.start(200, content_type="text/event-stream")
    sends = Sends(exchange)
    for part in (b"1", b"2", b"3"):
        exchange.write(part)
    assert len(sends.sent) == 3


async def test_small_sends_are_not_held_back_by_the_kernel(serve, held):
    _, exchange = await begin(serve, held)
    sock = exchange._outlet._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_for_large_bodies_the_kernel_may_take_more_and_never_less_again(serve, held):
    _, exchange = await begin(serve, held)
    sock = exchange._outlet._transport.get_extra_info("socket")
    exchange.widen(1 << 20)
    exchange.widen(1000)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 1 << 20


async def test_http_1_0_gets_a_body_without_chunks_that_ends_with_the_connection(serve, held):
    wire = await (await serve(held)).dial()
    wire.send(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    exchange = await held.next()
    exchange.start(200, content_type="text/plain")
    exchange.write(b"one ")
    exchange.write(b"two")
    exchange.finish()
    answer = await wire.answer()
    assert (answer.body, answer.headers["connection"]) == (b"one two", "close")


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("started", [False, True])
async def test_a_client_that_leaves_is_noticed_at_once_and_told_once(serve, held, leave, started):
    wire, exchange = await begin(serve, held)
    gone = asyncio.Event()
    calls = []
    exchange.on_closed = lambda: (calls.append(exchange.closed), gone.set())
    if started:
        exchange.start(200, content_type="text/event-stream")
        exchange.write(b"x")
        await wire.head()
    getattr(wire, leave)()
    await asyncio.wait_for(gone.wait(), 1)
    house_connections = exchange._carrier._house.connections
    while house_connections:
        await asyncio.sleep(0.001)
    assert calls == [True]
    assert exchange.buffered_bytes == 0
    exchange.write(b"nobody hears this")
    exchange.finish()
    exchange.respond(200, b"nor this")
    exchange.abort()


async def test_a_client_that_leaves_after_the_answer_is_no_event(serve, held):
    wire, exchange = await begin(serve, held)
    exchange.on_closed = lambda: pytest.fail("the response was complete")
    exchange.respond(200, b"")
    await wire.answer()
    wire.close()
    while exchange._carrier._house.connections:
        await asyncio.sleep(0.001)


async def test_requests_that_wait_behind_one_whose_client_left_are_not_served(serve, held):
    wire, exchange = await begin(serve, held)
    wire.send(GET)
    await wire.writer.drain()
    wire.close()
    while exchange._carrier._house.connections:
        await asyncio.sleep(0.001)
    assert held.exchanges.empty()


async def test_an_aborted_stream_is_seen_as_cut_after_all_that_was_written(serve, held):
    wire, exchange = await begin(serve, held)
    exchange.on_closed = lambda: pytest.fail("the handler itself cut it")
    exchange.start(200, content_type="text/event-stream")
    exchange.write(b"1")
    exchange.write(b"2")
    exchange.abort()
    await wire.head()
    assert [await wire.chunk(), await wire.chunk()] == [b"1", b"2"]
    assert await wire.ended() == b""


async def test_an_aborted_stream_to_http_1_0_ends_in_a_reset(serve, held):
    wire = await (await serve(held)).dial()
    wire.send(b"GET / HTTP/1.0\r\n\r\n")
    exchange = await held.next()
    exchange.start(200, content_type="text/plain")
    exchange.write(b"part")
    await wire.head()
    exchange.abort()
    with pytest.raises(ConnectionResetError):
        await wire.reader.read()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda exchange: exchange.write(b"x"),
        lambda exchange: exchange.finish(),
        lambda exchange: (exchange.respond(200, b""), exchange.respond(200, b"")),
        lambda exchange: (exchange.start(200, content_type="a/b"), exchange.respond(200, b"")),
    ],
)
async def test_calls_out_of_order_are_errors(serve, held, wrong):
    _, exchange = await begin(serve, held)
    with pytest.raises(RuntimeError, match="the response is"):
        wrong(exchange)


async def fill(exchange) -> int:
    """Write until the client's side is full."""
    total = 0
    while exchange.writable:
        exchange.write(b"x" * 65536)
        total += 65536
        await asyncio.sleep(0)
    return total


async def test_a_client_that_does_not_read_fills_a_measured_buffer_and_one_that_reads_again_is_told_of(serve, held):
    wire, exchange = await begin(serve, held)
    drained = asyncio.Event()
    exchange.on_drained = drained.set
    exchange.start(200, content_type="text/event-stream")
    wire.writer.transport.pause_reading()
    total = await fill(exchange)
    assert exchange.buffered_bytes > 65536
    wire.writer.transport.resume_reading()
    reading = asyncio.ensure_future(wire.answer())
    await asyncio.wait_for(drained.wait(), 10)
    assert exchange.writable
    exchange.finish()
    assert len((await reading).body) == total


async def test_a_client_that_takes_nothing_is_cut(serve, held):
    wire, exchange = await begin(serve, held, write_stall_s=0.1)
    gone = asyncio.Event()
    exchange.on_closed = gone.set
    exchange.start(200, content_type="text/event-stream")
    wire.writer.transport.pause_reading()
    await fill(exchange)
    await asyncio.wait_for(gone.wait(), 5)
    assert exchange.closed


async def test_a_client_that_takes_nothing_of_a_finished_answer_is_cut(serve, held):
    house = await serve(held, write_stall_s=0.1, idle_s=0.1)
    wire = await house.dial()
    wire.send(GET)
    exchange = await held.next()
    exchange.start(200, content_type="text/event-stream")
    wire.writer.transport.pause_reading()
    await fill(exchange)
    exchange.finish()
    while house.server.connections:
        await asyncio.sleep(0.01)


def read_slowly(port: int, result: dict) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        sock.connect(("127.0.0.1", port))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        size = 0
        while part := sock.recv(65536):
            size += len(part)
            result["size"] = size
            result["pause"].wait(0.01)


async def test_a_slow_client_that_takes_something_is_not_cut(serve):
    def handler(exchange):
        exchange.respond(200, b"x" * 8_000_000, content_type="text/plain")

    house = await serve(handler, write_stall_s=0.3, idle_s=0.3, linger_s=0.3)
    result = {"size": 0, "pause": threading.Event()}
    await asyncio.to_thread(read_slowly, house.port, result)
    assert result["size"] > 8_000_000


async def test_errors_after_the_head_do_not_reach_the_next_request(serve, held):
    wire, exchange = await begin(serve, held)
    exchange.start(200, content_type="text/event-stream")
    exchange.write(b'data: {"error": {}}\n\n')
    exchange.finish()
    assert json.loads((await wire.answer()).body[6:]) == {"error": {}}
    wire.send(GET)
    (await held.next()).respond(200, b"ok")
    assert (await wire.answer()).body == b"ok"
