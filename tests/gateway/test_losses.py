"""What happens when frames, workers, clients or the server go away in the middle."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import httpx2

CHAT = "/v1/chat/completions"


def error_of(text: str) -> dict[str, Any]:
    last = [line for line in text.splitlines() if line][-1]
    return json.loads(last.removeprefix("data: "))["error"]


def said(n: int) -> bytes:
    return b'data: {"n":%d}\n\n' % n


async def test_frames_that_come_twice_are_written_once(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    for n in range(3):
        await job.data(said(n))
    for n in range(3):
        await job.data(said(n), seq=2 + n)
    await job.data(b"data: [DONE]\n\n", seq=5)
    await job.end()
    assert (await asked).content == said(0) + said(1) + said(2) + b"data: [DONE]\n\n"


async def test_a_gap_after_data_is_an_error_event_and_no_done(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(said(0))
    await job.data(said(2), seq=4)
    response = await asked
    assert response.status_code == 200
    assert response.text.startswith(said(0).decode())
    assert error_of(response.text)["code"] == "worker_lost"
    assert "[DONE]" not in response.text
    assert (await asyncio.wait_for(worker.cancels.get(), 1))["epoch"] == 1


async def test_a_gap_before_data_goes_to_another_worker_unseen(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    assert await job.accept() == b"go"
    await job.data(said(9), seq=5)
    second = await worker.take()
    assert second.epoch == 2
    await second.answer("whole")
    response = await asked
    assert "whole" in response.text
    assert '"n":9' not in response.text


async def test_frames_of_an_old_epoch_are_dropped(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    first = await worker.take()
    assert await first.accept() == b"go"
    await first.data(b"", seq=9)
    second = await worker.take()
    await second.begin()
    await first.data(said(66), seq=2)
    first.next_seq = 0
    assert await first.accept() == b"gone"
    await second.data(said(1))
    await second.data(b"data: [DONE]\n\n")
    await second.end()
    assert (await asked).content == said(1) + b"data: [DONE]\n\n"


async def test_of_two_accepts_the_first_gets_the_request(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    assert await job.accept() == b"go"
    job.next_seq = 0
    assert await job.accept(node="n2") == b"gone"
    job.next_seq = 1
    await job.open()
    await job.data(b"data: [DONE]\n\n")
    await job.end()
    assert (await asked).headers["x-puna-node"] == "n1"


async def test_the_same_accept_again_is_go_again_until_something_was_heard(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    for _ in range(2):
        job.next_seq = 0
        assert await job.accept() == b"go"
    await job.open()
    job.next_seq = 0
    assert await job.accept() == b"gone"
    job.next_seq = 2
    await job.data(b"data: [DONE]\n\n")
    await job.end()
    assert (await asked).text == "data: [DONE]\n\n"


async def test_an_accept_for_a_request_that_nobody_knows_is_gone(gateway, worker) -> None:
    asked = gateway.ask()
    job = await worker.take()
    await job.answer_whole({})
    await asked
    job.next_seq = 0
    assert await job.accept() == b"gone"


async def test_a_silent_worker_before_data_costs_a_try_and_the_client_sees_nothing(gateway, worker) -> None:
    asked = gateway.ask()
    first = await worker.take()
    assert await first.accept() == b"go"
    started = time.monotonic()
    second = await worker.take()
    assert 2.5 < time.monotonic() - started < 4.5
    assert (second.epoch, second.headers["Puna-Request"]) == (2, first.headers["Puna-Request"])
    assert (await worker.cancels.get()) == {"request": first.headers["Puna-Request"], "epoch": 1}
    await second.answer_whole({"ok": True})
    assert (await asked).json() == {"ok": True}


async def test_pings_keep_a_silent_request_alive(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    for _ in range(8):
        await job.frame("ping", {"prompt_tokens_done": 5})
        await asyncio.sleep(0.5)  # longer than a worker may be silent, in all
    await job.data(b"data: [DONE]\n\n")
    await job.end()
    assert (await asked).text == "data: [DONE]\n\n"
    assert worker.cancels.empty()


async def test_silence_after_data_is_an_error_event(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(said(0))
    response = await asked
    assert error_of(response.text)["code"] == "worker_lost"
    assert "[DONE]" not in response.text


async def test_after_three_lost_workers_the_answer_is_a_real_502(start_gateway, start_worker) -> None:
    gateway = await start_gateway()
    worker = await start_worker()
    await gateway.until_seen()
    asked = gateway.ask(stream=True)
    for _ in range(3):
        job = await worker.take()
        assert await job.accept() == b"go"
        await job.data(b"", seq=7)
    response = await asked
    assert (response.status_code, response.json()["error"]["code"]) == (502, "worker_lost")


async def test_a_retryable_failure_before_data_goes_to_the_next_worker(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    assert await job.accept() == b"go"
    await job.frame("error", {"code": "engine_failed", "status": 502, "retryable": True, "message": "boom"})
    second = await worker.take()
    assert second.epoch == 2
    await second.answer("fine")
    assert "fine" in (await asked).text


async def test_a_retryable_failure_after_data_is_an_error_event(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(said(0))
    body = {"error": {"message": "boom", "type": "server_error", "param": None, "code": "engine_failed"}}
    await job.frame("error", {"code": "engine_failed", "status": 502, "retryable": True, "body": body})
    response = await asked
    assert error_of(response.text)["message"] == "boom"


async def test_a_stream_that_ends_without_done_has_failed(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(said(0))
    await job.end()
    response = await asked
    assert error_of(response.text)["code"] == "engine_failed"


async def test_a_frame_that_is_none_harms_nobody(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    reply = job.headers["Puna-Reply"]
    for junk in (b"", b"\n", b"data", b"data 1\n", b"data x y\n", b"\xff" * 1000, b"data 1 " + b"9" * 5000 + b"\n"):
        await worker.nc.publish(reply, junk)
        await worker.nc.publish(reply.rpartition(".")[0] + ".ffff", junk)
    await job.answer("fine")
    assert "fine" in (await asked).text


async def test_a_full_line_is_429_with_when_to_try_again(start_gateway, start_worker) -> None:
    gateway = await start_gateway(nats={"queue_limit_requests": 2})
    worker = await start_worker()
    await gateway.until_seen()
    waiting = [gateway.ask() for _ in range(2)]
    await worker.until_line_has(2)
    response = await gateway.ask(stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) >= 1000
    assert response.headers["x-should-retry"] == "true"
    for _ in waiting:
        job = await worker.take()
        await job.answer_whole({})
    assert [(await one).status_code for one in waiting] == [200, 200]


async def test_a_client_that_leaves_is_cancelled_at_the_node_at_once(gateway, worker) -> None:
    begun = asyncio.create_task(_begun(worker))
    async with gateway.http.stream("POST", CHAT, json=gateway.chat(stream=True)) as response:
        job = await begun
        async for _ in response.aiter_bytes():
            break
    cancel = await asyncio.wait_for(worker.cancels.get(), 1)  # 50 ms on an idle machine
    assert cancel == {"request": job.headers["Puna-Request"], "epoch": 1}


async def _begun(worker: Any) -> Any:
    job = await worker.take()
    await job.begin()
    await job.data(said(0))
    return job


async def test_a_client_that_leaves_while_waiting_is_taken_out_of_the_line(gateway, worker) -> None:
    asked = gateway.ask()
    await worker.until_line_has(1)
    asked.cancel()
    await worker.until_line_has(0, timeout_s=0.5)


async def test_a_client_that_leaves_at_once_leaves_nothing_in_the_line(gateway, worker) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_connection(*gateway.url.removeprefix("http://").split(":"))
        body = json.dumps(gateway.chat()).encode()
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        await writer.drain()
        writer.transport.abort()
        del reader
    await worker.until_line_has(0)
    marker = gateway.ask()
    job = await worker.take()
    await job.answer_whole({})
    assert (await marker).status_code == 200
    await worker.until_line_has(0)


async def test_a_server_killed_in_mid_stream_costs_no_byte(gateway, worker, nats_server) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(said(0))
    nats_server.restart()
    async with asyncio.timeout(10):
        while not worker.nc.is_connected:
            await asyncio.sleep(0.01)
        token = job.headers["Puna-Reply"].rpartition(".")[2]
        while await worker.credits.get() != f"{token} 1 3":
            pass
    await job.data(said(0), seq=2)
    await job.data(said(1))
    await job.data(b"data: [DONE]\n\n")
    await job.end()
    assert (await asked).content == said(0) + said(1) + b"data: [DONE]\n\n"


async def test_what_waited_when_the_server_was_killed_is_in_the_line_again(gateway, worker, nats_server) -> None:
    asked = [gateway.ask(user=str(n)) for n in range(5)]
    await worker.until_line_has(5)
    nats_server.restart()
    users = []
    for _ in asked:
        job = await worker.take()
        users.append(job.body["user"])
        await job.answer_whole({})
    assert [(await one).status_code for one in asked] == [200] * 5
    assert sorted(users) == list("01234")
    await worker.until_line_has(0)


async def test_without_nats_new_requests_are_refused_soon_and_served_again_after(gateway, worker, nats_server) -> None:
    nats_server.kill()
    started = time.monotonic()
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "bus_unavailable")
    assert time.monotonic() - started < 3
    assert int(response.headers["retry-after"]) >= 1
    assert (await gateway.http.get("/readyz")).status_code == 503
    assert (await gateway.http.get("/livez")).status_code == 200
    assert (await gateway.http.get("/v1/models")).json()["data"]
    asked = gateway.ask()
    nats_server.start()
    job = await worker.take()
    await job.answer_whole({})
    assert (await asked).status_code == 200


async def test_a_slow_client_holds_the_credit_back_until_it_reads_again(gateway, worker) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=8192)
    body = json.dumps(gateway.chat(stream=True)).encode()
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    job = await worker.take()
    await job.begin()
    big = b"data: " + b"x" * 200_000 + b"\n\n"
    for _ in range(60):
        await job.data(big)
    async with asyncio.timeout(8):
        numbers = [-2, -1]
        while numbers[-1] != numbers[-2]:
            numbers.append(int((await worker.credits.get()).split()[2]))
    assert numbers[-1] < job.next_seq
    await job.data(b"data: [DONE]\n\n")
    got = 0
    async with asyncio.timeout(20):
        while got < 60 * 200_000:
            got += len(await reader.read(1 << 20))
        while int((await worker.credits.get()).split()[2]) != job.next_seq:
            pass
    await job.end()
    writer.close()


async def test_a_model_whose_node_went_for_good_is_an_honest_503(gateway, worker, monkeypatch) -> None:
    monkeypatch.setattr("gateway.fleet.GONE_KEPT_S", 0.5)
    asked = gateway.ask()
    await worker.until_line_has(1)
    await worker.vanish()
    await worker.nc.publish("$KV.puna_nodes.n1", b"", headers={"KV-Operation": "DEL"})
    response = await asked
    assert response.status_code == 503
    assert "has not come back" in response.json()["error"]["message"]
    assert response.headers["retry-after"]


async def test_lost_connections_do_not_leave_the_client_unanswered(gateway, worker) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as other:
        task = asyncio.create_task(other.post(CHAT, json=gateway.chat()))
        job = await worker.take()
        await job.answer_whole({"ok": 1})
        assert (await task).json() == {"ok": 1}
