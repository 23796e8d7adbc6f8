"""The bus when the server dies, freezes, refuses, and comes back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import nkeys
import pytest

from bus.backoff import EAGER_FOR_S, EAGER_S, LONGEST_S, Backoff
from bus.connection import Bus
from bus.errors import BusDenied
from schemas.errors import BusUnavailable


def lost(bus: Bus) -> asyncio.Event:
    """Set when the connection goes."""
    event = asyncio.Event()
    bus.on_lost(event.set)
    return event


async def test_ten_kills_in_a_row_are_served_again_within_a_second_each(nats_server: Any, new_bus: Any) -> None:
    server_side, client = await new_bus(nats_server), await new_bus(nats_server)
    server_side.subscribe("echo", lambda m: server_side.publish(m.reply, m.payload))
    for number in range(10):
        gone = [lost(server_side), lost(client)]
        nats_server.kill()
        await asyncio.gather(*(event.wait() for event in gone))
        with pytest.raises(BusUnavailable):
            client.publish("echo")
        nats_server.start()
        back = time.monotonic()
        await asyncio.gather(server_side.ready(1), client.ready(1))
        answer = await client.request("echo", b"%d" % number, timeout_s=1)
        assert answer.payload == b"%d" % number
        assert time.monotonic() - back < 1
    assert client.session == server_side.session == 11


async def test_what_waits_for_an_answer_fails_at_once_when_the_connection_goes(bus: Bus, nats_server: Any) -> None:
    bus.subscribe("mute", lambda _: None)
    waiting = asyncio.create_task(bus.request("mute", b"", timeout_s=60))
    await bus.flush(2)
    nats_server.kill()
    with pytest.raises(BusUnavailable, match="lost"):
        async with asyncio.timeout(2):
            await waiting


async def test_nothing_published_while_away_is_delivered_late(bus: Bus, nats_server: Any, heard: Any) -> None:
    bus.subscribe_raw("x", heard)
    gone = lost(bus)
    nats_server.kill()
    await gone.wait()
    for _ in range(10):
        with pytest.raises(BusUnavailable):
            bus.publish("x", b"stale")
    nats_server.start()
    await bus.ready(2)
    bus.publish("x", b"fresh")
    await bus.flush(2)
    assert [payload for _, _, payload in heard.items] == [b"fresh"]


async def test_a_stream_across_kills_has_gaps_but_nothing_twice_and_nothing_swapped(
    nats_server: Any, new_bus: Any, heard: Any
) -> None:
    listener, sender = await new_bus(nats_server), await new_bus(nats_server)
    listener.subscribe_raw("frames", lambda _subject, _reply, payload: heard(int(payload[:8])))
    await listener.flush(2)
    number = 0
    for _ in range(5):
        upto = number + 400
        while number < upto:
            number += 1
            if sender.connected:
                sender.publish("frames", b"%08d" % number + bytes(5000))
            await asyncio.sleep(0)
        gone = [lost(listener), lost(sender)]
        nats_server.restart()
        await asyncio.gather(*(event.wait() for event in gone))
        await asyncio.gather(listener.ready(2), sender.ready(2))
    sender.publish("frames", b"%08d" % (number + 1))
    while number + 1 not in heard.items:
        await heard.count(len(heard.items) + 1)
    assert heard.items == sorted(set(heard.items))
    assert listener.faults == 0


async def test_after_the_loss_not_even_the_same_tick_takes_a_publish(bus: Bus) -> None:
    wire = bus._link.wire
    assert wire is not None
    wire.lose("as the test says")
    with pytest.raises(BusUnavailable, match=r"as the test says|not connected"):
        bus.publish("x")
    assert not bus.connected
    await bus.ready(2)


async def test_subscriptions_made_and_closed_while_away_count(bus: Bus, nats_server: Any, heard: Any) -> None:
    old = bus.subscribe("old", lambda _: pytest.fail("was closed"))
    gone = lost(bus)
    nats_server.kill()
    await gone.wait()
    old.close()
    bus.subscribe("new", heard)
    nats_server.start()
    await bus.ready(2)
    bus.publish("old")
    bus.publish("new")
    assert len(await heard.count(1)) == 1
    assert bus.faults == 0


async def test_each_session_runs_the_callbacks_with_subscriptions_already_replayed(
    bus: Bus, nats_server: Any, heard: Any
) -> None:
    bus.subscribe("self", lambda m: bus.publish(m.reply, b"here"))

    async def callback() -> None:
        answer = await bus.request("self", b"", timeout_s=2)
        heard((bus.session, answer.payload))

    bus.on_session(callback)
    await heard.count(1)
    nats_server.restart()
    assert await heard.count(2) == [(1, b"here"), (2, b"here")]


async def test_a_callback_that_hangs_is_cancelled_with_its_session(bus: Bus, nats_server: Any, heard: Any) -> None:
    async def hangs() -> None:
        heard(bus.session)
        await asyncio.Event().wait()

    bus.on_session(hangs)
    await heard.count(1)
    nats_server.restart()
    assert await heard.count(2) == [1, 2]


async def test_a_lost_callback_that_raises_does_not_keep_the_others_from_hearing(bus: Bus, nats_server: Any) -> None:
    def broken() -> None:
        raise ValueError("mine")

    bus.on_lost(broken)
    gone = lost(bus)
    nats_server.restart()
    await gone.wait()
    await bus.ready(2)


async def test_a_frozen_server_is_noticed_and_forgiven(nats_server: Any, new_bus: Any) -> None:
    bus = await new_bus(nats_server, ping_interval_s=0.2)
    gone = lost(bus)
    nats_server.pause()
    began = time.monotonic()
    async with asyncio.timeout(3):
        await gone.wait()
    assert 0.3 < time.monotonic() - began < 1.5
    assert "pings" in bus.trouble
    nats_server.resume()
    await bus.ready(5)
    await bus.flush(2)


async def test_a_server_frozen_before_the_first_connection_is_a_clear_error(nats_server: Any, new_bus: Any) -> None:
    nats_server.pause()
    with pytest.raises(BusUnavailable, match=r"within 0\.5 s"):
        await new_bus(nats_server, timeout_s=0.5)


async def test_an_error_that_ends_a_nats_py_client_for_ever_only_costs_a_session(bus: Bus) -> None:
    wire = bus._link.wire
    assert wire is not None
    gone = lost(bus)
    wire.send(b"PUB x 99999999\r\n")  # over max_payload: the server says so and hangs up
    await gone.wait()
    assert "Maximum Payload" in bus.trouble
    await bus.ready(2)
    assert bus.session == 2


async def test_changed_credentials_are_waited_out(new_nats_server: Any, new_bus: Any) -> None:
    mine, other = (f"authorization {{ user: u, password: {word} }}" for word in ("right", "changed"))
    server = new_nats_server(mine)
    bus = await new_bus(server, user="u", password="right")
    gone = lost(bus)
    server.reload(other)
    await gone.wait()
    with pytest.raises(BusUnavailable):
        await bus.ready(0.3)
    assert "Authorization Violation" in bus.trouble
    server.reload(mine)
    await bus.ready(5)


async def test_credentials_in_a_file_are_read_anew(tmp_path: Path, new_nats_server: Any, new_bus: Any) -> None:
    (seed, public), (new_seed, new_public) = key_pair(), key_pair()
    path = tmp_path / "user.nk"
    path.write_text(seed)
    server = new_nats_server(f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    bus = await new_bus(server, nkey_seed_file=path)
    gone = lost(bus)
    server.reload(f"authorization {{ users: [ {{ nkey: {new_public} }} ] }}")
    await gone.wait()
    path.write_text(new_seed)
    await bus.ready(5)


async def test_an_expired_jwt_is_replaced_by_the_file_s_new_one(
    tmp_path: Path, new_nats_server: Any, new_bus: Any
) -> None:
    operator, account, user = key_pair(b"O"), key_pair(b"A"), key_pair(b"U")
    operator_jwt = jwt(operator, operator, "operator", {})
    account_jwt = jwt(operator, account, "account", {"limits": {"subs": -1, "data": -1, "payload": -1, "conn": -1}})
    config = f'operator: "{operator_jwt}"\nresolver: MEMORY\nresolver_preload {{ {account[1]}: "{account_jwt}" }}'
    server = new_nats_server(config, jetstream=False)
    path = tmp_path / "user.creds"
    path.write_text(creds(jwt(account, user, "user", USER, expires_s=2), user[0]))
    bus = await new_bus(server, creds_file=path)
    gone = lost(bus)
    path.write_text(creds(jwt(account, user, "user", USER), user[0]))
    async with asyncio.timeout(5):
        await gone.wait()
    assert "Expired" in bus.trouble
    await bus.ready(5)


async def test_denials_are_forgotten_with_the_session(new_nats_server: Any, new_bus: Any) -> None:
    config = 'authorization { users: [ { user: u, password: p, permissions: { publish: "%s", subscribe: ">" } } ] }'
    server = new_nats_server(config % "ok")
    bus = await new_bus(server, user="u", password="p")
    bus.subscribe("later", lambda m: bus.publish(m.reply, b"yes"))
    with pytest.raises(BusDenied):
        await bus.request("later", b"", timeout_s=5)
    gone = lost(bus)
    server.kill()
    await gone.wait()
    server.write_config(config % ">")
    server.start()
    await bus.ready(2)
    assert bus.denials == {}
    assert (await bus.request("later", b"", timeout_s=2)).payload == b"yes"


async def test_the_next_server_of_the_list_takes_over(new_nats_server: Any, new_bus: Any) -> None:
    one, two = new_nats_server(), new_nats_server()
    bus = await new_bus(f"{one.url},{two.url}")
    gone = lost(bus)
    one.kill()
    await gone.wait()
    await bus.ready(2)
    await bus.flush(2)


def test_waits_are_short_at_first_then_long_and_never_in_step() -> None:
    backoff = Backoff(since_s=100.0)
    assert backoff.next_s(now_s=100.0, dice=1.0, refused=False) <= 0.05
    eager = [backoff.next_s(now_s=110.0, dice=dice, refused=False) for dice in (0.0, 0.5, 1.0)]
    assert eager == sorted(set(eager))
    assert max(eager) <= EAGER_S
    late = [backoff.next_s(now_s=100.0 + EAGER_FOR_S, dice=1.0, refused=False) for _ in range(10)]
    assert late[-1] == LONGEST_S
    assert max(late) == LONGEST_S


def test_a_refusal_is_not_hammered() -> None:
    backoff = Backoff(since_s=0.0)
    waits = [backoff.next_s(now_s=0.0, dice=1.0, refused=True) for _ in range(8)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_S


# -- keys and JWTs as `nsc` makes them ------------------------------------------------------------------------------
USER = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
KINDS = {b"O": nkeys.PREFIX_BYTE_OPERATOR, b"A": nkeys.PREFIX_BYTE_ACCOUNT, b"U": nkeys.PREFIX_BYTE_USER}


def key_pair(kind: bytes = b"U") -> tuple[str, str]:
    """Seed and public key."""
    seed = nkeys.encode_seed(hashlib.sha256(str(time.monotonic_ns()).encode()).digest(), KINDS[kind])
    text = bytes(seed).decode()
    return text, nkeys.from_seed(bytearray(seed)).public_key.decode()


def jwt(by: tuple[str, str], of: tuple[str, str], kind: str, claims: dict[str, Any], expires_s: int = 0) -> str:
    """A JWT of NATS, version 2."""
    body = {"iat": int(time.time()), "iss": by[1], "sub": of[1], "name": kind, "nats": claims | {"type": kind}}
    body["nats"]["version"] = 2
    if expires_s:
        body["exp"] = int(time.time()) + expires_s
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    signed = ".".join(_url64(json.dumps(part).encode()) for part in (head, body))
    return f"{signed}.{_url64(nkeys.from_seed(bytearray(by[0].encode())).sign(signed.encode()))}"


def creds(token: str, seed: str) -> str:
    """A credentials file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _url64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
