"""The fleet through NATS alone: what `nats req puna.infer.chat.<model> '{…}'` does, with a plain client."""

from __future__ import annotations

import asyncio
import json

import nats
import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.engine]

BODY = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 12, "temperature": 0}


@pytest.fixture
async def plain(fleet):
    client = await nats.connect(fleet.nats)
    yield client
    await client.close()


async def test_a_request_is_answered_with_the_endpoints_body(plain, fleet) -> None:
    answer = await plain.request(f"puna.infer.chat.{fleet.model}", json.dumps(BODY).encode(), timeout=60)
    assert json.loads(answer.data)["choices"][0]["message"]["content"]
    assert not (answer.headers or {}).get("Nats-Service-Error")


async def collect(plain, subject: str, body: dict) -> bytes:
    inbox = plain.new_inbox()
    replies = await plain.subscribe(inbox)
    await plain.publish(subject, json.dumps(body).encode(), reply=inbox)
    whole = b""
    while (message := await replies.next_msg(timeout=60)).data:
        whole += message.data
    return whole


async def test_a_stream_is_the_engines_sse_and_then_an_empty_message(plain, fleet) -> None:
    whole = await collect(plain, f"puna.infer.chat.{fleet.model}", BODY | {"stream": True})
    events = [line for line in whole.decode().split("\n\n") if line]
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-1])


async def test_one_node_can_be_asked_by_name(plain, fleet) -> None:
    node = fleet.facts["workers"][0]["node"]
    answer = await plain.request(f"puna.node.{node}.infer.chat.{fleet.model}", json.dumps(BODY).encode(), timeout=60)
    assert json.loads(answer.data)["choices"]


async def test_more_requests_than_slots_wait_in_line_and_all_are_answered(plain, fleet) -> None:
    subject = f"puna.infer.chat.{fleet.model}"
    asked = [plain.request(subject, json.dumps(BODY).encode(), timeout=100) for _ in range(12)]
    answers = await asyncio.gather(*asked)
    assert all(json.loads(answer.data)["choices"] for answer in answers)


async def test_a_bad_body_is_refused_with_the_service_error_headers(plain, fleet) -> None:
    answer = await plain.request(f"puna.infer.chat.{fleet.model}", b"not json", timeout=10)
    assert answer.headers["Nats-Service-Error-Code"] == "400"
    assert json.loads(answer.data)["error"]["code"] == "invalid_json"


async def test_a_model_that_nobody_serves_has_no_responder(plain) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await plain.request("puna.infer.chat.nope", json.dumps(BODY).encode(), timeout=5)
