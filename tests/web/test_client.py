"""The client against an engine that sends what the test says, byte for byte."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref

import pytest

from web import (
    AnswerTooLarge,
    BadAnswer,
    CallFailed,
    CallTimeout,
    Client,
    ConnectFailed,
    ConnectionCut,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nTransfer-Encoding: chunked\r\n"
    b"X-Twice: 1\r\nx-twice: 2\r\n\r\n"
    b"9\r\ndata: 0\r\n\r\n7;x=y\r\n\r\n0\r\n\r\n\r\n0\r\nmax: 100\r\n\r\n"
)
STREAM_BODY = b"data: 0\r\n\r\n0\r\n\r\n"


class Sink:
    """Notes the calls; `done` is set by `end` and `failed`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.ends: list[str | Exception] = []
        self.got = asyncio.Event()
        self.done = asyncio.Event()

    def head(self, status, headers):
        assert not self.status
        self.status, self.headers = status, dict(headers)

    def data(self, data):
        assert self.status
        assert data
        self.parts.append(data)
        self.got.set()

    def end(self):
        self.ends.append("end")
        self.done.set()

    def failed(self, error):
        self.ends.append(error)
        self.done.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    async def whole(self) -> list:
        await asyncio.wait_for(self.done.wait(), 5)
        await asyncio.sleep(0)
        return self.ends

    async def some(self) -> bytes:
        await asyncio.wait_for(self.got.wait(), 5)
        self.got.clear()
        return self.body


class Engine:
    """A listening socket; `await engine.request()` gives the next request and the connection that it came on."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue = asyncio.Queue()
        self.accepted = 0
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader, writer):
        self.accepted += 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
                body = await reader.readexactly(int(length[0][16:])) if length else b""
                self.requests.put_nowait((head + body, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    async def request(self):
        return await asyncio.wait_for(self.requests.get(), 5)

    async def answer(self, data: bytes, *, close: bool = False) -> bytes:
        request, _, writer = await self.request()
        writer.write(data)
        if close:
            writer.close()
        return request


@pytest.fixture
async def engine():
    made = Engine()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    for writer in made.writers:
        writer.transport.abort()


@pytest.fixture
async def client(engine):
    made = Client("127.0.0.1", engine.port, headers=[("authorization", "Bearer key")])
    yield made
    made.close()


async def test_a_request_is_sent_as_given(engine, client):
    sink = Sink()
    client.stream("POST", "/v1/chat/completions?a=b", b'{"a": 1}', sink, headers=[("x-request-id", "r1\r\nx: y")])
    request = await engine.answer(OK)
    assert request == (
        b"POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer key\r\n"
        b"x-request-id: r1  x: y\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n"
        b'{"a": 1}' % engine.port
    )
    assert await sink.whole() == ["end"]
    assert (sink.status, sink.headers, sink.body) == (200, {"content-length": "2"}, b"ok")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/a b"), ("GET", "/\r\nx: y"), ("GET", ""), ("get /", "/"), ("GET", "/é")]
)
async def test_a_request_that_cannot_be_sent_is_an_error_at_once(client, method, path):
    with pytest.raises(ValueError, match="may hold"):
        client.stream(method, path, b"", Sink())


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
async def test_an_answer_split_anywhere_is_the_same(engine, client, cut):
    sink = Sink()
    client.stream("POST", "/", b"{}", sink)
    _, _, writer = await engine.request()
    writer.write(STREAM[:cut])
    await writer.drain()
    await asyncio.sleep(0.0005)
    assert not sink.done.is_set()
    writer.write(STREAM[cut:])
    assert await sink.whole() == ["end"]
    assert sink.body == STREAM_BODY
    assert sink.headers == {"keep-alive": "timeout=5, max=100", "transfer-encoding": "chunked", "x-twice": "1, 2"}


async def test_an_answer_that_comes_byte_by_byte_is_the_same(engine, client):
    sink = Sink()
    client.stream("POST", "/", b"{}", sink)
    _, _, writer = await engine.request()
    for byte in STREAM:
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await sink.whole() == ["end"]
    assert sink.body == STREAM_BODY


async def test_headers_that_end_like_a_last_chunk_end_nothing(engine, client):
    """Real engines send `Keep-Alive: timeout=5, max=100`, and a search for `0\\r\\n\\r\\n` takes that for the end."""
    sink = Sink()
    client.stream("POST", "/", b"{}", sink)
    _, _, writer = await engine.request()
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n")
    writer.write(b"5\r\n0\r\n\r\n\r\n")
    assert await sink.some() == b"0\r\n\r\n"
    assert not sink.done.is_set()
    writer.write(b"0\r\n\r\n")
    assert await sink.whole() == ["end"]


async def test_what_one_read_gives_is_one_call(engine, client):
    sink = Sink()
    client.stream("POST", "/", b"{}", sink)
    await engine.answer(HEAD + b"1\r\na\r\n" * 50 + b"0\r\n\r\n")
    assert await sink.whole() == ["end"]
    assert sink.parts == [b"a" * 50]


async def test_a_body_without_length_ends_with_the_connection(engine, client):
    sink = Sink()
    client.stream("GET", "/", b"", sink)
    await engine.answer(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True)
    assert await sink.whole() == ["end"]
    assert sink.body == b"all of it"


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        HEAD,
        HEAD + b"5\r\nhello\r\n",
        HEAD + b"5\r\nhel",
        HEAD + b"5\r\nhello\r\n0\r\n",
    ],
)
async def test_an_answer_that_breaks_off_has_failed_and_what_came_was_handed_on(engine, client, part):
    sink = Sink()
    client.stream("POST", "/", b"{}", sink)
    await engine.answer(part, close=True)
    (error,) = await sink.whole()
    assert isinstance(error, ConnectionCut)
    if b"hel" in part:
        assert sink.body.startswith(b"hel")


async def test_a_reset_is_no_end_even_of_a_body_without_length(engine, client):
    sink = Sink()
    client.stream("GET", "/", b"", sink)
    _, _, writer = await engine.request()
    writer.write(b"HTTP/1.1 200 OK\r\n\r\npart")
    await sink.some()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
    (error,) = await sink.whole()
    assert isinstance(error, ConnectionCut)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        HEAD + b"xyz\r\n",
        HEAD + b"-5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http_has_failed(engine, client, answer):
    sink = Sink()
    client.stream("GET", "/", b"", sink)
    await engine.answer(answer)
    (error,) = await sink.whole()
    assert isinstance(error, BadAnswer)


async def test_abort_closes_the_socket_and_the_sink_hears_no_more(engine, client):
    sink = Sink()
    call = client.stream("POST", "/", b"{}", sink)
    _, _, writer = await engine.request()
    writer.write(HEAD + b"1\r\na\r\n")
    await sink.some()
    call.abort()
    call.abort()
    await asyncio.wait_for(writer.wait_closed(), 5) if writer.is_closing() else await _gone(writer)
    assert sink.ends == []


async def _gone(writer) -> None:
    while not writer.transport.is_closing():
        await asyncio.sleep(0.001)


async def test_abort_before_the_connection_stands_sends_nothing(engine, client):
    call = client.stream("POST", "/", b"{}", Sink())
    call.abort()
    assert (await asyncio.gather(client.fetch("GET", "/next", timeout_s=5), engine.answer(OK)))[1].startswith(
        b"GET /next"
    )


async def test_abort_from_within_the_sink_is_the_last_call(engine, client):
    sink = Sink()
    sink.head = lambda status, headers: call.abort()
    sink.data = lambda data: pytest.fail("aborted")
    call = client.stream("POST", "/", b"{}", sink)
    _, _, writer = await engine.request()
    writer.write(HEAD + b"1\r\na\r\n0\r\n\r\n")
    await _gone(writer)
    assert sink.ends == []


async def test_a_sink_that_raises_ends_its_call_and_is_told(engine, client):
    sink = Sink()
    wrong = KeyError("x")

    def data(data):
        raise wrong

    sink.data = data
    client.stream("POST", "/", b"{}", sink)
    _, _, writer = await engine.request()
    writer.write(HEAD + b"1\r\na\r\n")
    assert await sink.whole() == [wrong]
    await _gone(writer)


@pytest.mark.parametrize("early", [True, False])
async def test_a_paused_call_gets_nothing_until_it_is_resumed(engine, client, early):
    sink = Sink()
    call = client.stream("POST", "/", b"{}", sink)
    if early:
        call.pause()
    _, _, writer = await engine.request()
    if not early:
        writer.write(HEAD + b"1\r\na\r\n")
        await sink.some()
        call.pause()
        call.pause()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")
    else:
        writer.write(HEAD + b"2\r\nab\r\n0\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.05)
    assert sink.body == (b"" if early else b"a")
    call.resume()
    assert await sink.whole() == ["end"]
    assert sink.body == b"ab"


async def test_a_paused_call_pushes_back_on_the_engine(engine, client):
    sink = Sink()
    call = client.stream("POST", "/", b"{}", sink)
    _, _, writer = await engine.request()
    call.pause()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 33554432\r\n\r\n" + bytes(32 << 20))
    await asyncio.sleep(0.1)
    assert writer.transport.get_write_buffer_size() > 16 << 20
    call.resume()
    assert await sink.whole() == ["end"]
    assert len(sink.body) == 32 << 20


async def test_nobody_listening_is_a_connect_failure(client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sink = Sink()
    Client("127.0.0.1", port).stream("GET", "/", b"", sink)
    (error,) = await sink.whole()
    assert isinstance(error, ConnectFailed)
    with pytest.raises(ConnectFailed, match="cannot connect"):
        await Client("127.0.0.1", port).fetch("GET", "/", timeout_s=5)


async def test_an_engine_that_does_not_accept_is_given_up_in_time():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        await asyncio.sleep(0)
        client = Client("127.0.0.1", full.getsockname()[1], connect_timeout_s=0.1)
        with pytest.raises(ConnectFailed, match="in time"):
            await client.fetch("GET", "/", timeout_s=5)
        for filler in fillers:
            filler.close()


async def test_a_head_that_does_not_come_in_time_has_failed(engine, client):
    sink = Sink()
    client.stream("POST", "/", b"{}", sink, head_timeout_s=0.05)
    _, _, writer = await engine.request()
    (error,) = await sink.whole()
    assert isinstance(error, CallTimeout)
    await _gone(writer)


async def test_the_head_timeout_is_for_the_head_alone(engine, client):
    sink = Sink()
    client.stream("POST", "/", b"{}", sink, head_timeout_s=0.05)
    _, _, writer = await engine.request()
    writer.write(HEAD)
    await asyncio.sleep(0.1)
    writer.write(b"0\r\n\r\n")
    assert await sink.whole() == ["end"]


async def test_an_answer_with_a_length_leaves_its_connection_for_the_next(engine, client):
    for _ in range(3):
        response, _ = await asyncio.gather(client.fetch("GET", "/health", timeout_s=5), engine.answer(OK))
        assert response == (200, {"content-length": "2"}, b"ok")
    assert engine.accepted == 1


@pytest.mark.parametrize(
    "answer",
    [
        STREAM,
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_is_not_used_again_after_a_stream_or_a_close(engine, client, answer):
    for _ in range(2):
        await asyncio.gather(client.fetch("GET", "/", timeout_s=5), engine.answer(answer))
    assert engine.accepted == 2


async def test_an_engine_that_closes_after_its_promise_to_stay_costs_nothing(engine, client):
    """The real server does that after streams: headers say keep-alive, then the connection closes."""
    await asyncio.gather(client.fetch("GET", "/", timeout_s=5), engine.answer(OK, close=True))
    response, _ = await asyncio.gather(client.fetch("GET", "/", timeout_s=5), engine.answer(OK))
    assert response.body == b"ok"


async def test_a_request_on_a_kept_connection_that_dies_before_the_first_byte_is_repeated_once(engine, client):
    await asyncio.gather(client.fetch("GET", "/", timeout_s=5), engine.answer(OK))
    fetching = asyncio.ensure_future(client.fetch("POST", "/work", b"{}", timeout_s=5))
    first, _, writer = await engine.request()
    writer.close()
    second, _, writer = await engine.request()
    assert first == second
    assert engine.accepted == 2
    writer.close()
    with pytest.raises(ConnectionCut, match="before it answered"):
        await fetching
    assert engine.requests.empty()


async def test_a_request_on_a_kept_connection_is_not_repeated_after_the_first_byte(engine, client):
    await asyncio.gather(client.fetch("GET", "/", timeout_s=5), engine.answer(OK))
    fetching = asyncio.ensure_future(client.fetch("GET", "/", timeout_s=5))
    await engine.answer(b"H", close=True)
    with pytest.raises(ConnectionCut, match="in the middle"):
        await fetching
    assert engine.accepted == 1


async def test_bytes_that_nobody_asked_for_close_a_kept_connection(engine, client):
    fetching = asyncio.ensure_future(client.fetch("GET", "/", timeout_s=5))
    _, _, writer = await engine.request()
    writer.write(OK)
    await fetching
    writer.write(OK)
    await _gone(writer)
    response, _ = await asyncio.gather(client.fetch("GET", "/", timeout_s=5), engine.answer(OK))
    assert response.body == b"ok"
    assert engine.accepted == 2


async def test_calls_at_the_same_time_have_a_connection_each(engine, client):
    sinks = [Sink() for _ in range(5)]
    for sink in sinks:
        client.stream("POST", "/", b"{}", sink)
    writers = [(await engine.request())[2] for _ in range(5)]
    for number, writer in enumerate(writers):
        writer.write(HEAD + b"1\r\n%d\r\n0\r\n\r\n" % number)
    for sink in sinks:
        assert await sink.whole() == ["end"]
    assert sorted(sink.body for sink in sinks) == [b"0", b"1", b"2", b"3", b"4"]


async def test_fetch_gives_up_in_time_and_closes_the_socket(engine, client):
    fetching = asyncio.ensure_future(client.fetch("GET", "/secret?key=1", timeout_s=0.05))
    _, _, writer = await engine.request()
    with pytest.raises(CallTimeout) as caught:
        await fetching
    assert "key" not in str(caught.value)
    await _gone(writer)


async def test_a_cancelled_fetch_closes_the_socket(engine, client):
    fetching = asyncio.ensure_future(client.fetch("GET", "/", timeout_s=5))
    _, _, writer = await engine.request()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await _gone(writer)


async def test_fetch_takes_no_more_than_its_limit(engine, client):
    fetching = asyncio.ensure_future(client.fetch("GET", "/", timeout_s=5, limit_bytes=10))
    await engine.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world")
    with pytest.raises(AnswerTooLarge):
        await fetching


async def test_head_and_no_content_have_no_body(engine, client):
    head, _ = await asyncio.gather(
        client.fetch("HEAD", "/", timeout_s=5), engine.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
    )
    assert (head.status, head.body) == (200, b"")
    none, _ = await asyncio.gather(
        client.fetch("DELETE", "/", timeout_s=5), engine.answer(b"HTTP/1.1 204 No Content\r\n\r\n")
    )
    assert (none.status, none.body) == (204, b"")


async def test_an_answer_before_the_whole_request_is_sent_is_heard(serve):
    house = await serve(lambda exchange: exchange.respond(200, b""), body_bytes=1000)
    response = await Client(house.host, house.port).fetch("POST", "/", bytes(20_000_000), timeout_s=5)
    assert response.status == 413


async def test_every_failure_is_a_call_failed():
    for kind in (ConnectFailed, ConnectionCut, BadAnswer, AnswerTooLarge, CallTimeout):
        assert issubclass(kind, CallFailed)


@pytest.mark.parametrize("answer", [OK, STREAM, HEAD + b"zz"])
async def test_a_call_that_is_over_goes_without_the_garbage_collector(engine, client, answer):
    """Its sink holds an answer; the collector of a process that has run for long looks at old things hardly ever."""
    sink = Sink()
    gone = weakref.ref(sink)
    gc.disable()
    try:
        client.stream("POST", "/", b"{}", sink)
        await engine.answer(answer)
        await sink.whole()
        del sink
        client.close()
        async with asyncio.timeout(5):
            while gone() is not None:
                await asyncio.sleep(0.001)
    finally:
        gc.enable()
