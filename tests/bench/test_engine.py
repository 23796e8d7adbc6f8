"""The fake engine is a llama-server as far as a worker can tell, and keeps its rate."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.overhead.load import Seen

FLAGS = ["--host", "127.0.0.1", "--port", "0", "--alias", "some/model:Q4", "--parallel", "4", "--ctx-size", "8192"]
UNKNOWN = ["--no-webui", "--threads", "3", "--jinja"]


@pytest.fixture
def engine(engine_program: Path) -> Iterator[int]:
    env = {**os.environ, "FAKE_RATE": "200", "LLAMA_API_KEY": "ignored"}
    argv = [str(engine_program), *UNKNOWN, *FLAGS]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr
        found = re.search(r"listening on http://127.0.0.1:(\d+)", process.stderr.readline())
        assert found
        yield int(found[1])
        process.terminate()


def fetch(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
    response = connection.getresponse()
    return response.status, response.read()


def busy_slots(port: int) -> int:
    return sum(slot["is_processing"] for slot in json.loads(fetch(port, "/slots")[1]))


def test_it_answers_what_a_worker_asks(engine: int) -> None:
    assert fetch(engine, "/health") == (200, b'{"status":"ok"}')
    assert json.loads(fetch(engine, "/v1/models")[1])["data"][0]["id"] == "some/model:Q4"
    assert json.loads(fetch(engine, "/props")[1])["total_slots"] == 4
    assert [slot["is_processing"] for slot in json.loads(fetch(engine, "/slots")[1])] == [False] * 4
    assert fetch(engine, "/nothing")[0] == 404


@pytest.mark.parametrize("flag", ["--version", "--list-devices"])
def test_it_introduces_itself(engine_program: Path, flag: str) -> None:
    done = subprocess.run([engine_program, flag], capture_output=True, check=True, text=True)
    assert re.search(r"version: \d+|Available devices:", done.stdout + done.stderr)


def test_a_stream_is_server_sent_events_with_usage_and_an_end(engine: int) -> None:
    body = {"stream": True, "max_tokens": 3, "stream_options": {"include_usage": True}}
    status, raw = fetch(engine, "/v1/chat/completions", body)
    events = raw.decode().split("\n\n")
    assert status == 200
    assert events[-2:] == ["data: [DONE]", ""]
    parsed = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(part["choices"][0]["delta"]["content"] for part in parsed[:3]) == " w000000 w000001 w000002"
    assert parsed[3]["choices"][0]["finish_reason"] == "stop"
    assert parsed[4]["usage"]["completion_tokens"] == 3
    assert 200 <= len(events[0]) <= 300


def test_without_stream_it_answers_at_once(engine: int) -> None:
    status, raw = fetch(engine, "/v1/chat/completions", {"messages": []})
    assert (status, json.loads(raw)["object"]) == (200, "chat.completion")


def test_a_client_that_leaves_frees_its_slot(engine: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine, timeout=10)
    connection.request("POST", "/v1/chat/completions", '{"stream": true, "max_tokens": 100000}')
    response = connection.getresponse()
    assert response.fp.readline()
    assert busy_slots(engine) == 1
    response.close()
    connection.close()
    give_up_at = time.monotonic() + 5
    while busy_slots(engine) and time.monotonic() < give_up_at:
        pass
    assert busy_slots(engine) == 0


def test_many_streams_keep_order_and_lose_nothing(engine: int, drive: Callable[..., Seen]) -> None:
    seen = drive(engine, streams=32, requests=2, max_tokens=40)
    assert seen.faults == 0
    assert seen.answers == 64
    assert seen.chunks == 64 * (40 + 1)
    assert 4.0 <= seen.gap_ms.p50 <= 10.0
