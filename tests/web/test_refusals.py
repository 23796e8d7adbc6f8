"""What the server refuses by itself: always in OpenAI's shape, and always so that the client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"


def code_of(answer):
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["connection"] == "close"
    return error["code"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /a\r\n\r\n",
        b"GET /a HTTP/3.0\r\nhost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /a HTTP/1.1\nhost: h\n\n",
        b"GET /\x00 HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET nowhere HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET /?" + b"a&" * 300 + b" HTTP/1.1\r\nhost: h\r\n\r\n",
        b"CONNECT h:80 HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET /a HTTP/1.1\r\nhost: h\r\nx : y\r\n\r\n",
        b"GET /a HTTP/1.1\r\nhost: h\r\nx: y\r\n folded\r\n\r\n",
        b"GET /a HTTP/1.1\r\nhost: h\r\nx: \x00\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 3x\r\n\r\nabc",
        b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999999999999\r\n\r\nabc",
        b"POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
async def test_a_malformed_request_is_a_400_and_what_follows_it_is_not_served(serve, held, request_bytes):
    wire = await (await serve(held)).dial()
    wire.send(request_bytes + b"\r\n" + GET)
    answer = await wire.answer()
    assert answer.status == 400
    assert code_of(answer) == "invalid_request"
    assert await wire.ended() == b""
    assert held.exchanges.empty()


async def test_a_refusal_waits_for_the_answers_before_it(serve, held):
    wire = await (await serve(held)).dial()
    wire.send(GET + b"nonsense\r\n\r\n")
    (await held.next()).respond(200, b"first")
    assert (await wire.answer()).body == b"first"
    assert (await wire.answer()).status == 400
    assert await wire.ended() == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nhost: h\r\nx: " + b"y" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 50) for n in range(100)),
        b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\n" + b"a:b\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\nendless: " + b"y" * 40000,
    ],
)
async def test_huge_headers_are_a_431(serve, echo, request_bytes):
    answer = await (await serve(echo, header_bytes=4096)).ask(request_bytes)
    assert (answer.status, code_of(answer)) == (431, "headers_too_large")


async def test_headers_just_under_the_limit_are_taken_after_a_long_body(serve, echo):
    wire = await (await serve(echo, header_bytes=4096)).dial()
    big = b"GET /a HTTP/1.1\r\nhost: h\r\nx: " + b"y" * 3900 + b"\r\n\r\n"
    wire.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 16000\r\n\r\n" + b"b" * 16000 + big)
    assert (await wire.answer()).status == 200
    assert (await wire.answer()).body == b"GET /a "


async def test_a_chunk_extension_without_end_is_cut_off(serve, echo):
    wire = await (await serve(echo, header_bytes=4096)).dial()
    wire.send(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1;")
    wire.send(b"x" * 100_000)
    assert (await wire.answer()).status == 431


async def test_a_body_in_the_smallest_chunks_is_taken(serve, echo):
    answer = await (await serve(echo, header_bytes=4096)).ask(
        b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 30000 + b"0\r\n\r\n"
    )
    assert answer.body == b"POST / " + b"x" * 30000


async def test_a_body_over_the_limit_is_refused_before_it_comes(serve, held):
    wire = await (await serve(held, body_bytes=100)).dial()
    wire.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 101\r\n\r\n")
    answer = await wire.answer()
    assert (answer.status, code_of(answer)) == (413, "body_too_large")


async def test_expect_continue_for_a_body_over_the_limit_is_a_413_at_once(serve, held):
    wire = await (await serve(held, body_bytes=100)).dial()
    wire.send(b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 101\r\n\r\n")
    assert (await wire.answer()).status == 413


async def test_a_chunked_body_over_the_limit_is_refused(serve, held):
    wire = await (await serve(held, body_bytes=100)).dial()
    wire.send(
        b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"20\r\n"
        + b"x" * 32
        + b"\r\n"
        + b"5f\r\n"
    )
    wire.send(b"x" * 95)
    assert (await wire.answer()).status == 413
    assert held.exchanges.empty()


def post_50_mb(port: int, result: dict) -> None:
    """A client that sends all before it reads, as most do."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        body = memoryview(b"x" * 50_000_000)
        begun = time.monotonic()
        sock.sendall(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 50000000\r\n\r\n")
        sent = 0
        sock.setblocking(False)
        while "first_byte_s" not in result or sent < len(body):
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(body[sent : sent + 262144]) if sent < len(body) else 0
            with contextlib.suppress(BlockingIOError):
                result["answer"] = result.get("answer", b"") + sock.recv(65536)
                result.setdefault("first_byte_s", time.monotonic() - begun)
        result["sent"] = sent


async def test_a_50_mb_body_gets_its_413_within_50_ms_and_the_client_can_send_it_all(serve, held):
    house = await serve(held)
    result: dict = {}
    thread = threading.Thread(target=post_50_mb, args=(house.port, result), daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 20)
    assert result["answer"].startswith(b"HTTP/1.1 413 ")
    assert result["sent"] == 50_000_000
    assert result["first_byte_s"] < 0.05


async def test_headers_that_do_not_end_are_a_408(serve, held):
    wire = await (await serve(held, header_s=0.05)).dial()
    wire.send(b"GET / HTTP/1.1\r\nhost:")
    answer = await wire.answer()
    assert (answer.status, code_of(answer)) == (408, "request_timeout")
    assert await wire.ended() == b""


async def test_a_slow_sender_gets_no_more_time_by_sending_a_byte_now_and_then(serve, held):
    wire = await (await serve(held, header_s=0.2)).dial()
    begun = time.monotonic()
    answer = asyncio.ensure_future(wire.answer())
    wire.send(b"GET / HTTP/1.1\r\nhost: h\r\nx: ")
    while not answer.done():
        wire.send(b"y")
        await asyncio.wait([answer], timeout=0.02)
    assert answer.result().status == 408
    assert time.monotonic() - begun < 2


async def test_a_body_that_does_not_end_is_a_408(serve, held):
    wire = await (await serve(held, body_s=0.05)).dial()
    wire.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nabc")
    assert (await wire.answer()).status == 408


async def test_each_request_of_a_connection_has_its_own_time(serve, echo):
    wire = await (await serve(echo, header_s=0.3)).dial()
    begun = time.monotonic()
    wire.send(GET[:5])
    while time.monotonic() - begun < 0.6:
        wire.send(GET[5:] + GET[:5])
        assert (await wire.answer()).status == 200
        await asyncio.sleep(0.02)


async def test_an_idle_connection_is_closed_without_a_word(serve, echo):
    wire = await (await serve(echo, idle_s=0.05)).dial()
    wire.send(GET)
    assert (await wire.answer()).status == 200
    assert await wire.ended() == b""


async def test_a_handler_may_take_longer_than_any_limit_of_the_client(serve, held):
    wire = await (await serve(held, idle_s=0.05, header_s=0.05, body_s=0.05)).dial()
    wire.send(GET)
    exchange = await held.next()
    await asyncio.sleep(0.2)
    exchange.respond(200, b"late")
    assert (await wire.answer()).body == b"late"


async def test_one_connection_too_many_is_a_503_at_once_and_a_free_place_is_used_again(serve, echo):
    house = await serve(echo, connections=2)
    wires = [await house.dial() for _ in range(2)]
    for wire in wires:
        wire.send(GET)
        assert (await wire.answer()).status == 200
    answer = await house.ask(GET)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert code_of(answer) == "unavailable"
    for wire in wires:
        wire.close()
    while house.server.connections:
        await asyncio.sleep(0.001)
    assert (await house.ask(GET)).status == 200


async def test_a_lingering_client_is_let_go(serve, held):
    house = await serve(held, linger_s=0.05)
    wire = await house.dial()
    wire.send(b"nonsense\r\n\r\n")
    await wire.answer()
    while house.server.connections:
        wire.send(b"more")
        await asyncio.sleep(0.01)


async def test_errors_of_the_server_are_rendered_by_the_owner(serve, held):
    house = await serve(held, server={"on_error": lambda error: b"mine: " + error.code.encode()})
    assert (await house.ask(b"nonsense\r\n\r\n")).body == b"mine: invalid_request"


BIG = b"content-length: 101\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (413, b"POST / HTTP/1.1\r\nhost: h\r\nx-request-id: mine-1\r\n" + BIG),
        (431, b"GET / HTTP/1.1\r\nhost: h\r\nx-request-id: mine-1\r\nx: " + b"y" * 5000),
        (400, b"GET / HTTP/1.1\r\nx-request-id: mine-1\r\nhost: h\r\nx : y\r\n\r\n"),
        (408, b"POST / HTTP/1.1\r\nhost: h\r\nx-request-id: mine-1\r\ncontent-length: 9\r\n\r\nabc"),
    ],
)
async def test_a_refusal_carries_the_clients_own_id_as_far_as_it_was_read(serve, held, status, request_bytes):
    house = await serve(held, body_bytes=100, header_bytes=4096, body_s=0.05, header_s=0.05)
    answer = await house.ask(request_bytes)
    assert (answer.status, answer.headers["x-request-id"]) == (status, "mine-1")


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nhost: h\r\nx-request-id: a b\r\n" + BIG])
async def test_a_refusal_of_a_request_without_a_usable_id_gets_a_new_one(serve, held, head):
    first, second = [await (await serve(held, body_bytes=100)).ask(head) for _ in range(2)]
    assert len(first.headers["x-request-id"]) == 24
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_a_refusal_takes_nothing_from_the_request_before_it(serve, held):
    wire = await (await serve(held)).dial()
    wire.send(b"GET / HTTP/1.1\r\nhost: h\r\nx-request-id: first\r\n\r\nnonsense\r\n\r\n")
    (await held.next()).respond(200, b"")
    await wire.answer()
    assert (await wire.answer()).headers["x-request-id"] != "first"


async def test_one_connection_too_many_gets_an_id_and_is_told_when_to_come_again(serve, echo):
    house = await serve(echo, connections=1)
    wire = await house.dial()
    wire.send(GET)
    await wire.answer()
    headers = (await house.ask(GET)).headers
    assert len(headers["x-request-id"]) == 24
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("1", "1000", "true")


async def test_headers_of_the_servers_own_answers_are_the_owners(serve, held):
    def own(asked):
        return [("x-own", asked.get("origin", "unknown"))]

    def breaks(exchange):
        raise ValueError

    house = await serve(held, body_bytes=100, server={"refusal_headers": own})
    answer = await house.ask(b"POST / HTTP/1.1\r\nhost: h\r\norigin: here\r\n" + BIG)
    assert (answer.status, answer.headers["x-own"]) == (413, "here")
    assert (await house.ask(b"nonsense\r\n\r\n")).headers["x-own"] == "unknown"
    broken = await (await serve(breaks, server={"refusal_headers": own})).ask(
        b"GET / HTTP/1.1\r\nhost: h\r\norigin: here\r\n\r\n"
    )
    assert (broken.status, broken.headers["x-own"], broken.headers["x-should-retry"]) == (500, "here", "false")
