"""Start, stop, drain, TLS."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess

import pytest

from web import Server

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"


async def test_stop_closes_idle_connections_and_waits_for_what_runs(serve, held):
    house = await serve(held)
    idle, busy = await house.dial(), await house.dial()
    busy.send(GET)
    exchange = await held.next()
    exchange.start(200, content_type="text/event-stream")
    exchange.write(b"1")
    stopping = asyncio.ensure_future(house.server.stop(10))
    assert await idle.ended() == b""
    with pytest.raises(OSError):
        await house.dial()
    assert not stopping.done()
    exchange.write(b"2")
    exchange.finish()
    assert (await busy.answer()).body == b"12"
    assert await busy.ended() == b""
    await stopping


async def test_an_answer_during_the_drain_says_that_it_is_the_last(serve, held):
    house = await serve(held)
    wire = await house.dial()
    wire.send(GET)
    exchange = await held.next()
    stopping = asyncio.ensure_future(house.server.stop(10))
    await asyncio.sleep(0)
    exchange.respond(200, b"last")
    assert (await wire.answer()).headers["connection"] == "close"
    await stopping


async def test_what_outlasts_the_grace_is_cut_and_its_handler_told(serve, held):
    house = await serve(held)
    wire = await house.dial()
    wire.send(GET)
    exchange = await held.next()
    gone = []
    exchange.on_closed = lambda: gone.append(True)
    await house.server.stop(0.05)
    assert gone == [True]
    assert house.server.connections == 0
    assert await wire.ended() in (b"", b"reset")


async def test_stop_may_be_called_twice_and_before_start(serve, echo):
    house = await serve(echo)
    await house.server.stop(1)
    await house.server.stop(1)
    await Server(echo).stop(1)


async def test_a_taken_port_is_an_error_at_start(serve, echo):
    house = await serve(echo)
    with pytest.raises(OSError):
        await Server(echo).start(house.host, house.port)


async def test_two_servers_may_share_a_port(echo):
    first, second = Server(echo), Server(echo)
    host, port = await first.start("127.0.0.1", 0, reuse_port=True)
    assert await second.start(host, port, reuse_port=True) == (host, port)
    await first.stop(0)
    await second.stop(0)


@pytest.fixture
def contexts(tmp_path):
    """Server's and client's TLS settings around a fresh self-signed certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, *subject, "-days", "2", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


async def test_tls_serves_streams_refuses_and_notices_who_leaves(serve, held, contexts):
    server, client = contexts
    house = await serve(held, server={"ssl": server}, body_bytes=100)
    wire = await house.dial(ssl=client, server_hostname="localhost")
    wire.send(GET)
    exchange = await held.next()
    exchange.start(200, content_type="text/event-stream")
    exchange.write(b"secret")
    exchange.finish()
    assert (await wire.answer()).body == b"secret"
    wire.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000)
    assert (await wire.answer()).status == 413
    other = await house.dial(ssl=client, server_hostname="localhost")
    other.send(GET)
    exchange = await held.next()
    gone = asyncio.Event()
    exchange.on_closed = gone.set
    other.close()
    await asyncio.wait_for(gone.wait(), 2)
    wire.close()


async def test_a_tls_client_that_does_not_speak_is_let_go(serve, echo, contexts):
    house = await serve(echo, server={"ssl": contexts[0]}, header_s=0.1)
    wire = await house.dial()
    assert await wire.ended() in (b"", b"reset")


async def test_plain_http_to_a_tls_port_does_no_harm(serve, echo, contexts):
    house = await serve(echo, server={"ssl": contexts[0]})
    wire = await house.dial()
    wire.send(GET)
    await wire.ended()
    good = await house.dial(ssl=contexts[1], server_hostname="localhost")
    good.send(GET)
    assert (await good.answer()).status == 200
