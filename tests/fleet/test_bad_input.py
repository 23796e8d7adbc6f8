"""Hostile and broken requests over a raw socket: a quick 4xx in OpenAI's shape, and nothing of them in any log."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.engine]

SECRET = "xylophonic-marmalade"


def chat(model: object, **fields: object) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": SECRET}]} | fields).encode()


async def post(fleet, body: bytes, *, length: int | None = None, path: str = "/v1/chat/completions"):
    host, port = fleet.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    started = time.perf_counter()
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n".encode()
    )
    sending = asyncio.ensure_future(_send(writer, body))
    status = int((await asyncio.wait_for(reader.readline(), 10)).split()[1])
    took = time.perf_counter() - started
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(next(line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")))
    answer = json.loads(await reader.readexactly(size))
    sending.cancel()
    writer.close()
    return status, answer, took


async def _send(writer, body: bytes) -> None:
    """In pieces, so that the answer is seen when it comes and not when this side has copied all it has to say."""
    try:
        for start in range(0, len(body), 65_536):
            writer.write(body[start : start + 65_536])
            await writer.drain()
    except ConnectionError:
        return


DEEP = b'{"model":"smollm2","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CASES = {
    "not json": (b"hello " + SECRET.encode(), 400),
    "empty": (b"", 400),
    "an array": (b"[]", 400),
    "nested 1e5 deep": (DEEP, 400),
    "dots": (chat("../../etc/passwd"), 400),
    "star": (chat("*"), 404),
    "greater": (chat(">"), 404),
    "newlines": (chat("a\r\nb"), 400),
    "10 kB name": (chat("m" * 10_240), 400),
    "number as model": (chat(7), 400),
    "string as messages": (b'{"model":"smollm2","messages":"hi"}', 400),
    "string as stream": (chat("smollm2", stream="yes"), 400),
    "string as temperature": (chat("smollm2", temperature="hot"), 400),
    "unknown field": (chat("smollm2", temprature=1), 400),
    "dangerous field": (chat("smollm2", id_slot=0), 400),
}


@pytest.mark.parametrize("case", CASES)
async def test_bad_bodies_are_refused_quickly_in_openais_shape(fleet, case) -> None:
    body, wanted = CASES[case]
    answers = [await post(fleet, body) for _ in range(5)]
    for status, answer, _ in answers:
        assert status == wanted
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert SECRET not in json.dumps(answer)
    assert sorted(took for _, _, took in answers)[2] < 0.05


async def test_a_body_of_50_mb_is_refused_before_it_is_read(fleet) -> None:
    status, answer, took = await post(fleet, b"x" * 50_000_000)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert took < 0.05


@pytest.mark.parametrize(("path", "status"), [("/nope", 404), ("/v1/models", 405)])
async def test_odd_paths_are_answered_in_openais_shape(fleet, path, status) -> None:
    got, answer, _ = await post(fleet, b"{}", path=path)
    assert got == status
    assert answer["error"]["message"]


async def test_nothing_of_a_prompt_is_in_any_log_and_the_fleet_still_answers(fleet, client) -> None:
    await client.chat.completions.create(
        model=fleet.model, messages=[{"role": "user", "content": SECRET}], max_tokens=4
    )
    text = fleet.logs() + (fleet.state_dir / "up.stderr").read_text(errors="replace")
    assert text
    assert SECRET not in text
