"""What strangers send. Each is refused quickly, in OpenAI's shape, and nothing breaks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

BODIES: dict[str, Any] = {
    "not json": b"{hello",
    "empty": b"",
    "not an object": b"[1]",
    "not utf-8": b'{"model": "\xff\xfe"}',
    "nested deep": b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested deep objects": b'{"model":"m","metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "no model": {"messages": GOOD["messages"]},
    "null model": GOOD | {"model": None},
    "number for model": GOOD | {"model": 3},
    "dots": GOOD | {"model": "../../etc/passwd"},
    "star": GOOD | {"model": "*"},
    "greater": GOOD | {"model": "m.>"},
    "newline": GOOD | {"model": "m\r\nSUB > 1"},
    "nul": GOOD | {"model": "m\u0000"},
    "long": GOOD | {"model": "x" * 10_000},
    "surrogate": b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}',
    "messages as text": GOOD | {"messages": "hi"},
    "no messages": {"model": "m"},
    "temperature as text": GOOD | {"temperature": "hot"},
    "unknown field": GOOD | {"temprature": 1},
    "dangerous field": GOOD | {"n_discard": 5},
    "stream as number": GOOD | {"stream": 1},
    "huge number": b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":1e999}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_bad_body_is_a_quick_4xx(gateway, worker, name: str) -> None:
    body = BODIES[name]
    await gateway.http.get("/livez")
    started = time.perf_counter()
    if isinstance(body, bytes):
        response = await gateway.http.post(CHAT, content=body)
    else:
        response = await gateway.http.post(CHAT, json=body)
    took = time.perf_counter() - started
    assert 400 <= response.status_code < 500
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert took < 0.5  # 50 ms on an idle machine
    assert await worker.line_length() == 0


async def test_50_mb_are_refused_before_they_are_read(gateway) -> None:
    reader, writer = await asyncio.open_connection(*gateway.url.removeprefix("http://").split(":"))
    started = time.perf_counter()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n{")
    head = await reader.readuntil(b"\r\n\r\n")
    assert time.perf_counter() - started < 0.05
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in await reader.read(4096)
    writer.close()
    assert (await gateway.http.get("/livez")).status_code == 200


async def test_odd_model_pages_are_404(gateway, worker) -> None:
    for odd in ("..", "*", "%3E", "a%0Ab", "x" * 5000, "%FF"):
        assert (await gateway.http.get(f"/v1/models/{odd}")).status_code == 404


async def test_a_bad_deadline_names_its_header(gateway, worker) -> None:
    for bad in ("0", "-1", "soon", "9" * 30):
        response = await gateway.http.post(CHAT, json=GOOD, headers={"x-puna-deadline-ms": bad})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "x-puna-deadline-ms")
