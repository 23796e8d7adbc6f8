"""Into the line and out again, whatever the server does meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from schemas.subjects import Names
from schemas.topology import fleet


async def api(worker: Any, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = await worker.nc.request(f"$JS.API.{what}", json.dumps(body or {}).encode(), timeout=3)
    return json.loads(answer.data)


async def drop_lines(worker: Any) -> None:
    assert (await api(worker, f"STREAM.DELETE.{worker.names.stream_queue}"))["success"]


async def make_lines(worker: Any) -> None:
    spec = fleet(Names()).streams[0]
    assert "error" not in await api(worker, f"STREAM.CREATE.{spec.name}", spec.config())


async def test_a_line_that_is_made_a_moment_later_takes_the_request(gateway, worker) -> None:
    await drop_lines(worker)
    asked = gateway.ask()
    await asyncio.wait({asked}, timeout=0.2)
    assert not asked.done()
    await make_lines(worker)
    await (await worker.take()).answer_whole({})
    assert (await asked).status_code == 200


async def test_without_a_line_the_request_is_refused_after_the_wait_for_the_bus(start_gateway, start_worker) -> None:
    gateway = await start_gateway(bus_wait_s=0.3)
    worker = await start_worker()
    await gateway.until_seen()
    await drop_lines(worker)
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_stream")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_lost_ack_is_asked_for_again_under_the_same_id(start_gateway, start_worker, nats_server) -> None:
    gateway = await start_gateway(bus_wait_s=10)
    worker = await start_worker()
    await gateway.until_seen()
    nats_server.pause()
    asked = gateway.ask()
    await asyncio.wait({asked}, timeout=2.6)
    assert not asked.done()
    nats_server.resume()
    await worker.until_line_has(1, timeout_s=5)
    await (await worker.take()).answer_whole({})
    assert (await asked).status_code == 200
    await worker.until_line_has(0)


async def test_who_leaves_before_the_ack_leaves_nothing_in_the_line(gateway, worker, nats_server) -> None:
    nats_server.pause()
    asked = gateway.ask()
    await asyncio.wait({asked}, timeout=0.3)
    asked.cancel()
    await asyncio.wait({asked}, timeout=0.3)
    nats_server.resume()
    again = gateway.ask(user="a second one, behind the first")
    await worker.until_line_has(1)
    job = await worker.take()
    assert "user" in job.body
    await job.answer_whole({})
    assert (await again).status_code == 200
    await worker.until_line_has(0)


async def test_a_request_that_comes_while_the_bus_is_away_goes_out_when_it_is_back(
    gateway, worker, nats_server
) -> None:
    nats_server.kill()
    while (await gateway.http.get("/readyz")).status_code == 200:
        await asyncio.sleep(0.01)
    asked = gateway.ask()
    nats_server.start()
    await (await worker.take()).answer_whole({})
    assert (await asked).status_code == 200


async def test_of_many_at_once_each_is_in_the_line_once(gateway, worker) -> None:
    asked = [gateway.ask(user=str(n)) for n in range(40)]
    await worker.until_line_has(40)
    users = set()
    for _ in asked:
        job = await worker.take()
        users.add(job.body["user"])
        await job.answer_whole({})
    assert len(users) == 40
    assert {(await one).status_code for one in asked} == {200}
