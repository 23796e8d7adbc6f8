"""What happens to running requests when a part goes away: nats-server, the engine, the worker, its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from nats.errors import Error as NatsError

TOKEN = "org=2Ffake-1=2E5=3AQ4"
QUESTION = b'{"stream": true, "messages": [{"role": "user", "content": "count"}]}'
WAIT_S = 20


def text(count: int) -> str:
    return "".join(f"t{number} " for number in range(count))


async def started(requester: Any, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while sum("data" in stream.kinds for stream in requester.streams.values()) < count:
            await asyncio.sleep(0.01)


async def seen(worker: Any, event: str, count: int) -> None:
    """Until the worker has logged so many of these events."""
    async with asyncio.timeout(WAIT_S):
        while len(worker.lines(event)) < count:
            await asyncio.sleep(0.02)


async def in_session(worker: Any, number: int) -> None:
    """Until the worker has its so-manieth session with the server."""
    async with asyncio.timeout(WAIT_S):
        while worker.lines("bus.connected")[-1]["session"] < number:
            await asyncio.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def all_done(streams: list[Any], limit_s: float = WAIT_S) -> None:
    async with asyncio.timeout(limit_s):
        for stream in streams:
            await stream.done.wait()


async def test_streams_go_on_whole_over_a_killed_and_restarted_nats_server(
    new_worker: Any, requester: Any, nats_server: Any
) -> None:
    worker = await new_worker(slots=8, flags={"chunks": 120, "chunk-interval": 0.02})
    streams = [await requester.ask() for _ in range(8)]
    await started(requester, 8)
    nats_server.kill()
    await seen(worker, "bus.lost", 1)
    nats_server.start()
    await all_done(streams)
    assert [stream.gap for stream in streams] == [False] * 8
    assert [stream.kinds[-1] for stream in streams] == ["end"] * 8
    assert [stream.text for stream in streams] == [text(120)] * 8
    assert worker.lines("bus.connected")[-1]["session"] == 2


async def test_streams_outlive_three_restarts_in_a_row(new_worker: Any, requester: Any, nats_server: Any) -> None:
    worker = await new_worker(slots=4, flags={"chunks": 150, "chunk-interval": 0.02})
    streams = [await requester.ask() for _ in range(4)]
    await started(requester, 4)
    for restarts in range(1, 4):
        nats_server.restart()
        await in_session(worker, restarts + 1)
        heard = [stream.next_seq for stream in streams]
        while any(stream.next_seq <= before for stream, before in zip(streams, heard, strict=True)):
            await asyncio.sleep(0.01)
    await all_done(streams)
    assert [stream.text for stream in streams] == [text(150)] * 4
    assert not any(stream.gap for stream in streams)


async def test_an_answer_that_ends_while_the_server_is_away_still_arrives(
    new_worker: Any, requester: Any, nats_server: Any
) -> None:
    worker = await new_worker(flags={"chunks": 40, "chunk-interval": 0.02})
    stream = await requester.ask()
    await started(requester, 1)
    nats_server.kill()
    await seen(worker, "request", 1)
    nats_server.start()
    await all_done([stream])
    assert stream.text == text(40)
    assert stream.kinds[-1] == "end"


async def test_a_worker_serves_again_within_a_second_of_the_servers_return(
    new_worker: Any, requester: Any, nats_server: Any
) -> None:
    worker = await new_worker(flags={"chunks": 2, "chunk-interval": 0.01})
    nats_server.kill()
    await seen(worker, "bus.lost", 1)
    nats_server.start()
    back_at = time.monotonic()
    while True:
        try:
            await requester.client.request(f"puna.infer.chat.{TOKEN}", QUESTION.replace(b"true", b"false"), timeout=0.2)
            break
        except NatsError:  # the client itself is on its way back
            await asyncio.sleep(0.02)
    assert time.monotonic() - back_at < 1.0
    stream = None
    while stream is None:
        try:
            stream = await requester.ask()
        except NatsError:  # the line is being made
            await asyncio.sleep(0.02)
    await all_done([stream])
    assert time.monotonic() - back_at < 2.0


async def test_a_plain_stream_that_lost_its_server_ends_with_an_error(
    new_worker: Any, requester: Any, nats_server: Any
) -> None:
    await new_worker(flags={"chunks": 200, "chunk-interval": 0.02})
    subscription = await requester.client.subscribe("_T.plain")
    await requester.client.publish(f"puna.infer.chat.{TOKEN}", QUESTION, reply="_T.plain")
    assert (await subscription.next_msg(timeout=5)).data.startswith(b"data: ")
    nats_server.restart()
    async with asyncio.timeout(WAIT_S):
        while not (message := await subscription.next_msg(timeout=WAIT_S)).headers:
            assert message.data
    assert message.headers["Nats-Service-Error-Code"] == "502"
    assert (await subscription.next_msg(timeout=5)).data == b""


async def test_a_killed_engine_is_told_and_started_again(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(slots=1, flags={"chunks": 1000})
    stream = await requester.ask()
    await started(requester, 1)
    os.kill((await requester.verb("n1", "status"))["engines"][0]["pid"], signal.SIGKILL)
    await all_done([stream], 3)
    assert (stream.last["code"], stream.last["status"], stream.last["retryable"]) == ("engine_died", 502, True)
    assert stream.last["data_frames"] == stream.kinds.count("data") > 0
    await seen(worker, "engine_ready", 2)
    again = await requester.ask()
    async with asyncio.timeout(WAIT_S):
        while "data" not in again.kinds:
            await asyncio.sleep(0.02)


async def test_an_engine_whose_stream_ends_without_done_has_failed(new_worker: Any, requester: Any) -> None:
    await new_worker(flags={"cut-after": 5})
    stream = await requester.ask()
    await all_done([stream])
    assert stream.last["code"] == "engine_failed"
    assert stream.text == text(5)


async def test_requests_wait_in_the_line_while_the_engine_loads(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(ready=False, flags={"slow-start": 1.5, "chunks": 3})
    stream = await ask_when_the_line_is_there(requester)
    await all_done([stream])
    assert stream.text == text(3)
    assert worker.lines("request")[0]["waited_ms"] > 300


async def ask_when_the_line_is_there(requester: Any) -> Any:
    while True:
        try:
            return await requester.ask()
        except NatsError:  # the worker is making the topology
            await asyncio.sleep(0.02)


async def test_sigterm_drains_and_leaves_nothing(new_worker: Any, requester: Any, wait_until: Any) -> None:
    worker = await new_worker(flags={"chunks": 40, "chunk-interval": 0.02})
    bucket = await requester.client.jetstream().key_value("puna_nodes")
    assert (await bucket.get("n1")).value
    stream = await requester.ask()
    await started(requester, 1)
    engines = worker.engines()
    worker.terminate()
    await seen(worker, "node_draining", 1)
    late = await requester.ask()
    await all_done([stream])
    assert stream.text == text(40)
    assert await worker.ended() == 0
    assert late.kinds == []
    await wait_until(lambda: not any(lives(engine) for engine in engines))
    assert (await requester.client.jetstream().stream_info("PUNA_QUEUE")).state.messages == 1
    assert await bucket.history("n1")
    assert (await bucket.history("n1"))[-1].operation == "DEL"


async def test_a_draining_worker_says_so(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(flags={"chunks": 100, "chunk-interval": 0.02})
    await requester.ask()
    await started(requester, 1)
    worker.terminate()
    async with asyncio.timeout(3):
        while not (await requester.verb("n1", "status"))["draining"]:
            await asyncio.sleep(0.02)


async def test_a_second_sigterm_ends_what_runs_with_a_retryable_error(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(flags={"chunks": 1000})
    stream = await requester.ask()
    await started(requester, 1)
    worker.terminate()
    await seen(worker, "node_draining", 1)
    worker.terminate()
    await all_done([stream], 3)
    assert (stream.last["code"], stream.last["retryable"]) == ("unavailable", True)
    assert await worker.ended(5) == 0


async def test_a_worker_whose_parent_is_killed_ends_with_its_engines(
    nats_server: Any, tmp_path: Path, write_config: Any
) -> None:
    command = [sys.executable, "-m", "worker", "--config", str(write_config()), "--nats", nats_server.url]
    command += ["--node", "n1", "--http", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
    script = f"import os, subprocess; subprocess.run({command!r} + ['--parent-pid', str(os.getpid())])"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    assert await asyncio.to_thread(parent.stdout.readline)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert family
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 10)
    for process in alive:
        process.kill()
    assert not alive


async def test_an_earlier_lifes_engines_are_ended_at_start(new_worker: Any, wait_until: Any) -> None:
    worker = await new_worker()
    orphans = worker.engines()
    worker.process.kill()
    worker.process.wait()
    await new_worker()
    await wait_until(lambda: not any(lives(orphan) for orphan in orphans))
