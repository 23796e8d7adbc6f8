"""TLS is truly on when it is asked for, or nothing is sent."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bus.connection import Bus
from bus.errors import BusRefused
from bus.settings import NatsSettings

INFO = b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true,"auth_required":true}\r\n'


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, server.pem, server.key, client.pem, client.key."""
    home = tmp_path_factory.mktemp("pki")

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=home, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2")
    (home / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for who in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{who}.csr", "-out", f"{who}.pem", *signing)
    return home


def config(pki: Path, more: str = "") -> str:
    """The server's side."""
    files = f'cert_file: "{pki}/server.pem", key_file: "{pki}/server.key", ca_file: "{pki}/ca.pem"'
    return f"tls {{ {files} {more} }}"


def is_encrypted(bus: Bus) -> bool:
    """What the socket itself says."""
    wire = bus._link.wire
    assert wire is not None
    assert wire._transport is not None
    return wire._transport.get_extra_info("ssl_object") is not None


async def test_tls_is_on_and_survives_a_restart(pki: Path, new_nats_server: Any, new_bus: Any) -> None:
    server = new_nats_server(config(pki))
    bus = await new_bus(server, tls_ca_file=pki / "ca.pem")
    bus.subscribe("echo", lambda m: bus.publish(m.reply, m.payload))
    assert is_encrypted(bus)
    assert len((await bus.request("echo", bytes(800_000), timeout_s=5)).payload) == 800_000
    gone = asyncio.Event()
    bus.on_lost(gone.set)
    server.restart()
    await gone.wait()
    await bus.ready(2)
    assert is_encrypted(bus)
    assert (await bus.request("echo", b"again", timeout_s=5)).payload == b"again"


def test_tls_works_on_uvloop_too(pki: Path, new_nats_server: Any) -> None:
    server = new_nats_server(config(pki))

    async def walk() -> None:
        bus = await Bus.connect(NatsSettings(url=server.url, tls_ca_file=pki / "ca.pem"), name="uv")
        bus.subscribe("echo", lambda m: bus.publish(m.reply, m.payload))
        assert is_encrypted(bus)
        for _ in range(3):
            assert len((await bus.request("echo", bytes(800_000), timeout_s=5)).payload) == 800_000
        await bus.close()

    uvloop.run(walk())


async def test_a_server_that_leaves_the_choice_is_talked_to_in_tls(
    pki: Path, new_nats_server: Any, new_bus: Any
) -> None:
    server = new_nats_server(config(pki) + "\nallow_non_tls: true")
    assert is_encrypted(await new_bus(server, tls_ca_file=pki / "ca.pem"))
    assert not is_encrypted(await new_bus(server))


async def test_handshake_first_and_client_certificates_work(pki: Path, new_nats_server: Any, new_bus: Any) -> None:
    server = new_nats_server(config(pki, ", verify: true, handshake_first: true"), scheme="tls")
    own = {"tls_cert_file": pki / "client.pem", "tls_key_file": pki / "client.key"}
    assert is_encrypted(await new_bus(server, tls_ca_file=pki / "ca.pem", tls_first=True, **own))


async def test_a_plain_server_gets_not_one_byte_when_tls_is_required(new_bus: Any) -> None:
    received = bytearray()
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        with contextlib.suppress(ConnectionError):
            received.extend(await reader.read())
        writer.close()
        closed.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(BusRefused, match="TLS is required"):
        await new_bus(f"tls://u:secret@127.0.0.1:{port}")
    await closed.wait()
    listener.close()
    assert received == b""


async def test_a_certificate_of_a_stranger_is_refused_with_what_to_check(
    pki: Path, new_nats_server: Any, new_bus: Any
) -> None:
    server = new_nats_server(config(pki))
    with pytest.raises(BusRefused, match="tls_ca_file"):
        await new_bus(server, tls_required=True)


async def test_a_certificate_for_another_name_is_refused(pki: Path, new_nats_server: Any, new_bus: Any) -> None:
    server = new_nats_server(config(pki))
    with pytest.raises(BusRefused, match="names"):
        await new_bus(f"tls://127.0.0.2:{server.port}".replace("127.0.0.2", "0.0.0.0"), tls_ca_file=pki / "ca.pem")


async def test_tls_files_that_cannot_be_read_are_named(pki: Path, new_bus: Any) -> None:
    with pytest.raises(BusRefused, match="TLS files"):
        await new_bus("tls://127.0.0.1:1", tls_ca_file=pki / "nothing.pem")
