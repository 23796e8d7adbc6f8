"""What reaches a handler, and in which order the answers leave."""

from __future__ import annotations

import asyncio
import json

import pytest

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
POST = b"POST /b?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;name=value\r\nhel\r\n2\r\nlo\r\n0\r\ntrailer: max=100\r\n\r\n"
)


@pytest.mark.parametrize("request_bytes", [GET, POST, CHUNKED])
async def test_a_request_split_at_every_byte_is_one_request(serve, echo, request_bytes):
    house = await serve(echo)
    wire = await house.dial()
    wire.send(request_bytes)
    whole = await wire.answer()
    assert whole.status == 200
    for cut in range(1, len(request_bytes)):
        wire.send(request_bytes[:cut])
        await wire.writer.drain()
        await asyncio.sleep(0)
        wire.send(request_bytes[cut:])
        assert (await wire.answer()).body == whole.body


async def test_a_request_that_comes_byte_by_byte_is_one_request(serve, echo):
    wire = await (await serve(echo)).dial()
    for byte in CHUNKED:
        wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.answer()).body == b"POST /c hello"


async def test_path_query_and_headers_are_decoded(serve):
    seen = []

    def handler(exchange):
        seen.append(exchange.request)
        exchange.respond(204, b"")

    house = await serve(handler)
    await house.ask(
        b"GET /v1/models/org%2Frepo:Q4%20K?a=%2Fx&b=&a=2&plus=1+1 HTTP/1.1\r\nHOST: h\r\nX-Twice: 1\r\nx-twice: 2\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\n\r\n"
    )
    (request,) = seen
    assert request.path == "/v1/models/org/repo:Q4 K"
    assert request.query == {"a": "2", "b": "", "plus": "1 1"}
    assert request.headers == {"host": "h", "x-twice": "1, 2", "cookie": "a=1; b=2"}
    assert request.peer == "127.0.0.1"


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://h:1/x/y?z=1", "/x/y"), (b"http://h", "/"), (b"*", "*"), (b"//double", "//double")]
)
async def test_every_form_of_target_has_a_path(serve, target, path):
    def handler(exchange):
        exchange.respond(200, exchange.request.path.encode())

    house = await serve(handler)
    assert (await house.ask(b"OPTIONS " + target + b" HTTP/1.1\r\nhost: h\r\n\r\n")).body == path.encode()


async def test_options_reaches_the_handler(serve, echo):
    house = await serve(echo)
    assert (await house.ask(b"OPTIONS /x HTTP/1.1\r\nhost: h\r\n\r\n")).body == b"OPTIONS /x "


async def test_head_has_the_length_and_no_body(serve, echo):
    wire = await (await serve(echo)).dial()
    wire.send(b"HEAD /a HTTP/1.1\r\nhost: h\r\n\r\n" + GET)
    answer = await wire.answer(bodiless=True)
    assert answer.headers["content-length"] == "8"
    assert (await wire.answer()).body == b"GET /a "


async def test_head_of_a_stream_has_no_chunks(serve):
    def handler(exchange):
        exchange.start(200, content_type="text/event-stream")
        exchange.write(b"data: 1\n\n")
        exchange.finish()

    wire = await (await serve(handler)).dial()
    wire.send(b"HEAD /a HTTP/1.1\r\nhost: h\r\n\r\n" + GET)
    assert (await wire.answer(bodiless=True)).status == 200
    assert (await wire.answer()).body == b"data: 1\n\n"


async def test_pipelined_requests_are_answered_in_order_though_handlers_end_out_of_order(serve, held):
    wire = await (await serve(held)).dial()
    wire.send(GET + POST + CHUNKED)
    first = await held.next()
    assert held.exchanges.empty()
    first.respond(200, b"1")
    (await held.next()).respond(200, b"2")
    (await held.next()).respond(200, b"3")
    assert [(await wire.answer()).body for _ in range(3)] == [b"1", b"2", b"3"]


async def test_a_client_that_pipelines_too_much_is_made_to_wait_and_loses_nothing(serve, held):
    count = 5000
    wire = await (await serve(held, pipelined=4)).dial()
    wire.send(b"".join(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % n for n in range(count)))
    for number in range(count):
        exchange = await held.next()
        assert exchange.request.path == f"/{number}"
        backlog = exchange._carrier._backlog
        assert len(backlog) < 4 + 16384 // 28
        exchange.respond(200, b"%d" % number)
        assert (await wire.answer()).body == b"%d" % number


async def test_a_burst_of_pipelined_requests_needs_no_deep_stack(serve, echo):
    count = 3000
    wire = await (await serve(echo)).dial()
    wire.send(GET * count)
    for _ in range(count):
        assert (await wire.answer()).body == b"GET /a "


async def test_a_body_of_many_reads_arrives_whole(serve, echo):
    body = bytes(range(256)) * 4096
    wire = await (await serve(echo)).dial()
    for _ in range(3):
        wire.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert (await wire.answer()).body == b"POST / " + body


async def test_expect_continue_is_answered_before_the_body_comes(serve, echo):
    wire = await (await serve(echo)).dial()
    wire.send(b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"ok")
    assert (await wire.answer()).body == b"POST / ok"


async def test_expect_continue_waits_for_the_answer_before_it(serve, held):
    wire = await (await serve(held)).dial()
    wire.send(GET + b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    (await held.next()).respond(200, b"first")
    assert (await wire.answer()).body == b"first"
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"ok")
    assert (await held.next()).request.body == b"ok"


async def test_http_1_0_closes_after_the_answer_unless_it_asks_to_stay(serve, echo):
    house = await serve(echo)
    wire = await house.dial()
    wire.send(b"GET /old HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    answer = await wire.answer()
    assert (answer.body, answer.headers["connection"]) == (b"GET /old ", "keep-alive")
    wire.send(b"GET /old HTTP/1.0\r\n\r\n")
    assert (await wire.answer()).headers["connection"] == "close"
    assert await wire.ended() == b""


async def test_connection_close_is_honoured_and_what_follows_is_not_served(serve, held):
    wire = await (await serve(held)).dial()
    wire.send(b"GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n" + GET)
    (await held.next()).respond(200, b"bye")
    answer = await wire.answer()
    assert (answer.body, answer.headers["connection"]) == (b"bye", "close")
    assert await wire.ended() == b""
    assert held.exchanges.empty()


async def test_an_offered_upgrade_is_ignored(serve, echo):
    wire = await (await serve(echo)).dial()
    wire.send(b"GET /u HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n" + GET)
    assert (await wire.answer()).body == b"GET /u "
    assert (await wire.answer()).body == b"GET /a "


async def test_a_handler_that_raises_is_a_500_in_openai_shape_and_its_text_stays_inside(serve, caplog):
    def handler(exchange):
        raise ValueError("the prompt")

    house = await serve(handler)
    wire = await house.dial()
    for _ in range(2):
        wire.send(GET)
        answer = await wire.answer()
        assert answer.status == 500
        assert json.loads(answer.body)["error"]["code"] == "internal_error"
        assert b"prompt" not in answer.body
    assert "handler_failed" in caplog.text
    assert "prompt" not in caplog.text


async def test_a_handler_that_raises_inside_a_stream_cuts_it(serve):
    def handler(exchange):
        exchange.start(200, content_type="text/plain")
        exchange.write(b"part")
        raise KeyError

    wire = await (await serve(handler)).dial()
    wire.send(GET)
    await wire.head()
    assert await wire.chunk() == b"part"
    assert await wire.ended() in (b"", b"reset")


async def test_header_values_cannot_inject_lines(serve):
    def handler(exchange):
        exchange.respond(
            200,
            b"",
            content_type="text/plain\r\nevil: 1",
            headers=[("x-request-id", "a\r\nevil: 2\n\x00b"), ("x-u", "é☃")],
        )

    answer = await (await serve(handler)).ask(GET)
    assert "evil" not in answer.headers
    assert answer.headers["x-request-id"] == "a  evil: 2  b"


@pytest.mark.parametrize("name", ["bad name", "x:y", "", "x\r\n", "Content-Length", "connection"])
async def test_a_header_name_that_is_none_or_not_the_callers_is_an_error(serve, name):
    caught = []

    def handler(exchange):
        try:
            exchange.respond(200, b"", headers=[(name, "1")])
        except ValueError as error:
            caught.append(error)
            exchange.respond(200, b"fine")

    assert (await (await serve(handler)).ask(GET)).body == b"fine"
    assert caught


async def test_204_and_304_have_no_body_and_no_length(serve):
    def handler(exchange):
        exchange.respond(int(exchange.request.path[1:]), b"ignored")

    wire = await (await serve(handler)).dial()
    for status in (204, 304):
        wire.send(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % status)
        answer = await wire.answer(bodiless=True)
        assert answer.status == status
        assert "content-length" not in answer.headers
