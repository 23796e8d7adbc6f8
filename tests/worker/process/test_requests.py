"""Requests to a whole worker over NATS: framed, broker-native, busy, gone, cancelled, late."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

MODEL = "org/fake-1.5:Q4"
TOKEN = "org=2Ffake-1=2E5=3AQ4"
GROUP = f"puna.infer.chat.{TOKEN}"
QUESTION = {"messages": [{"role": "user", "content": "count"}]}
TEXT = "".join(f"t{number} " for number in range(20))
WAIT_S = 15


async def test_a_framed_request_from_the_line_is_answered_in_numbered_frames(shared_requester: Any) -> None:
    stream = await shared_requester.ask()
    async with asyncio.timeout(WAIT_S):
        await stream.done.wait()
    assert stream.kinds[:2] == ["accept", "open"]
    assert stream.kinds[-1] == "end"
    assert stream.opened["status"] == 200
    assert stream.opened["content_type"].startswith("text/event-stream")
    assert stream.text == TEXT
    assert stream.data.endswith(b"data: [DONE]\n\n")
    assert stream.last["data_frames"] == stream.kinds.count("data")
    assert stream.last["timings"]["predicted_n"] == 20
    info = await shared_requester.client.jetstream().stream_info("PUNA_QUEUE")
    assert info.state.messages == 0


async def test_data_frames_hold_whole_events(shared_requester: Any) -> None:
    stream = shared_requester.expect()
    frames: list[bytes] = []
    take = stream.take
    stream.take = lambda raw: (frames.append(raw), take(raw))
    body = json.dumps(QUESTION | {"stream": True}).encode()
    await shared_requester.client.jetstream().publish(
        f"puna.queue.batch.{TOKEN}", body, headers=shared_requester.headers(stream)
    )
    async with asyncio.timeout(WAIT_S):
        await stream.done.wait()
    data = [raw.partition(b"\n")[2] for raw in frames if raw.startswith(b"data ")]
    assert data
    assert all(payload.endswith(b"\n\n") for payload in data)


async def test_a_framed_answer_that_is_no_stream_comes_whole(shared_requester: Any) -> None:
    stream = await shared_requester.ask(stream=False)
    async with asyncio.timeout(WAIT_S):
        await stream.done.wait()
    assert json.loads(stream.data)["choices"][0]["message"]["content"] == TEXT
    assert stream.last["usage"]["completion_tokens"] == 20


async def test_a_plain_client_gets_the_body_as_one_message(shared_requester: Any) -> None:
    answer = await shared_requester.client.request(GROUP, json.dumps(QUESTION).encode(), timeout=WAIT_S)
    assert answer.headers is None
    assert json.loads(answer.data)["choices"][0]["message"]["content"] == TEXT


async def test_a_plain_client_gets_a_stream_and_then_an_empty_message(shared_requester: Any) -> None:
    subscription = await shared_requester.client.subscribe("_T.stream")
    await shared_requester.client.publish(GROUP, json.dumps(QUESTION | {"stream": True}).encode(), reply="_T.stream")
    parts: list[bytes] = []
    while (message := await subscription.next_msg(timeout=WAIT_S)).data:
        parts.append(message.data)
    assert len(parts) > 1
    assert b"".join(parts).endswith(b"data: [DONE]\n\n")


async def test_a_bad_body_of_a_plain_client_is_refused_by_name(shared_requester: Any) -> None:
    answer = await shared_requester.client.request(GROUP, json.dumps(QUESTION | {"id_slot": 1}).encode(), timeout=3)
    assert answer.headers["Nats-Service-Error-Code"] == "400"
    assert json.loads(answer.data)["error"]["param"] == "id_slot"


async def test_a_busy_worker_passes_group_requests_into_the_line(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(slots=1)
    ask = [requester.client.request(GROUP, json.dumps(QUESTION).encode(), timeout=WAIT_S) for _ in range(4)]
    answers = await asyncio.gather(*ask)
    assert [json.loads(answer.data)["choices"][0]["message"]["content"] for answer in answers] == [TEXT] * 4
    assert {line["origin"] for line in worker.lines("request")} == {"group", "line"}


async def test_a_full_line_is_told_to_a_plain_client(new_worker: Any, requester: Any) -> None:
    await new_worker(slots=1, flags={"chunks": 60, "chunk-interval": 0.05}, nats={"queue_limit_requests": 1})
    await requester.ask()
    await streams_started(requester, 1)
    await requester.ask()
    answer = await requester.client.request(GROUP, json.dumps(QUESTION).encode(), timeout=WAIT_S)
    assert answer.headers["Nats-Service-Error-Code"] == "429"
    assert json.loads(answer.data)["error"]["code"] == "queue_full"


async def streams_started(requester: Any, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while sum("data" in stream.kinds for stream in requester.streams.values()) < count:
            await asyncio.sleep(0.01)


async def test_never_more_requests_than_slots_run_and_all_are_served(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(slots=2, flags={"chunks": 10})
    lanes = ["interactive", "batch"] * 6
    streams = [await requester.ask(lane=lane) for lane in lanes]
    most = 0
    async with asyncio.timeout(30):
        while not all(stream.done.is_set() for stream in streams):
            most = max(most, await requester.busy(worker.node))
    assert most == 2
    assert all(stream.kinds[-1] == "end" and not stream.gap for stream in streams)


async def test_two_workers_share_the_line(new_worker: Any, requester: Any) -> None:
    await new_worker("n1", slots=1)
    await new_worker("n2", slots=1)
    streams = [await requester.ask() for _ in range(4)]
    async with asyncio.timeout(WAIT_S):
        for stream in streams:
            await stream.done.wait()
    assert requester.nodes == {"n1", "n2"}


async def test_gone_to_an_accept_ends_the_work_at_once_and_the_slot_is_free(
    new_worker: Any, requester: Any, wait_until: Any
) -> None:
    worker = await new_worker(slots=1, flags={"chunks": 400})
    stream = await requester.ask(word=b"gone")
    await wait_until(lambda: worker.lines("request"))
    assert worker.lines("request")[0]["outcome"] == "cancelled"
    assert stream.kinds[0] == "accept"
    assert set(stream.kinds[1:]) <= {"open", "data"}, "nothing may look like an end"
    assert stream.kinds.count("data") < 5, "the work goes on for 400"
    assert await requester.busy("n1") == 0
    assert (await requester.client.jetstream().stream_info("PUNA_QUEUE")).state.messages == 0


async def test_a_requester_that_does_not_answer_an_accept_is_left(
    new_worker: Any, requester: Any, wait_until: Any
) -> None:
    worker = await new_worker(slots=1, flags={"chunks": 400})
    stream = await requester.ask(word=None)
    await wait_until(lambda: worker.lines("request"))
    assert worker.lines("request")[0]["outcome"] == "cancelled"
    assert 2900 <= worker.lines("request")[0]["total_ms"] < 4000
    assert "end" not in stream.kinds
    assert (await requester.client.jetstream().stream_info("PUNA_QUEUE")).state.messages == 1


async def test_a_requester_that_leaves_frees_the_slot_within_250_ms(
    new_worker: Any, new_requester: Any, requester: Any, wait_until: Any
) -> None:
    worker = await new_worker(slots=1, flags={"chunks": 1000})
    leaver = await new_requester("g2")
    await leaver.ask()
    await streams_started(leaver, 1)
    left_at = time.monotonic()
    await leaver.stop()
    await wait_until(lambda: worker.lines("request"))
    assert time.monotonic() - left_at < 0.35  # 250 ms, and what the closing and our own looking takes
    assert await requester.busy("n1") == 0


async def test_cancel_ends_the_work(new_worker: Any, requester: Any) -> None:
    await new_worker(slots=1, flags={"chunks": 1000})
    stream = await requester.ask()
    await streams_started(requester, 1)
    answer = await requester.verb("n1", "cancel", f"r-{stream.token}".encode())
    assert answer["cancelled"] is True
    async with asyncio.timeout(2):
        await stream.done.wait()
    assert stream.last["code"] == "cancelled"
    assert await requester.busy("n1") == 0
    again = await requester.verb("n1", "cancel", json.dumps({"request": f"r-{stream.token}", "epoch": 1}).encode())
    assert again["cancelled"] is False


async def test_the_deadline_ends_the_work_with_504(new_worker: Any, requester: Any) -> None:
    await new_worker(slots=1, flags={"chunks": 1000})
    stream = await requester.ask(**{"Puna-Deadline": "700"})
    async with asyncio.timeout(3):
        await stream.done.wait()
    assert (stream.last["code"], stream.last["status"]) == ("deadline_exceeded", 504)
    assert stream.last["data_frames"] > 0


async def test_a_later_attempt_ends_the_earlier_one(new_worker: Any, requester: Any) -> None:
    await new_worker(slots=1, flags={"chunks": 100})
    first = await requester.ask()
    await streams_started(requester, 1)
    body = json.dumps(QUESTION | {"stream": True, "model": MODEL}).encode()
    second = requester.expect(epoch=2)
    headers = requester.headers(second, **{"Puna-Request": f"r-{first.token}"})
    await requester.client.publish(f"puna.node.n1.infer.chat.{TOKEN}", body, headers=headers)
    async with asyncio.timeout(WAIT_S):
        await first.done.wait()
        await second.done.wait()
    assert first.last["code"] == "cancelled"
    assert second.kinds[-1] == "end"


async def test_a_node_without_a_free_slot_refuses_a_framed_request_at_once(new_worker: Any, requester: Any) -> None:
    await new_worker(slots=1, flags={"chunks": 1000})
    await requester.ask()
    await streams_started(requester, 1)
    refused = await requester.ask_node("n1")
    async with asyncio.timeout(2):
        await refused.done.wait()
    assert refused.kinds == ["error"]
    assert refused.last["retryable"] is True
    assert refused.last["status"] == 503


async def test_a_node_serves_a_framed_request_that_names_it(shared_requester: Any) -> None:
    stream = await shared_requester.ask_node("n1")
    async with asyncio.timeout(WAIT_S):
        await stream.done.wait()
    assert stream.text == TEXT


async def test_pings_tell_that_a_silent_worker_lives(new_worker: Any, requester: Any) -> None:
    await new_worker(flags={"prompt-delay": 2.5, "chunks": 3})
    stream = await requester.ask()
    async with asyncio.timeout(WAIT_S):
        await stream.done.wait()
    assert stream.pings >= 2
    assert stream.kinds[-1] == "end"


async def test_no_prompt_and_no_answer_is_in_the_log(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(flags={"log-requests": "1", "chunks": 3})
    body = json.dumps({"messages": [{"role": "user", "content": "MY-SECRET"}]}).encode()
    await requester.client.request(GROUP, body, timeout=WAIT_S)
    await requester.client.request(GROUP, body[:-1], timeout=WAIT_S)
    text = worker.log.read_text()
    assert "MY-SECRET" not in text
    assert "t0 t1" not in text
    assert worker.lines("request")[0]["outcome"] == "ok"
