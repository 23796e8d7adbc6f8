"""An unmodified OpenAI client against the real engine, through the whole fleet."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.engine]

QUESTION = [{"role": "user", "content": "Name three colours."}]
COLD = {"cache_prompt": False}
"""Two answers are only comparable if the engine computed both prompts alike."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


async def test_models_are_listed_and_retrieved(client, fleet) -> None:
    assert [model.id async for model in client.models.list()] == [fleet.model]
    assert (await client.models.retrieve(fleet.model)).id == fleet.model


async def test_a_plain_chat_is_answered_with_usage(client, fleet) -> None:
    answer = await client.chat.completions.create(model=fleet.model, messages=QUESTION, max_tokens=16, temperature=0)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


async def test_a_stream_is_the_plain_answer_in_pieces(client, fleet) -> None:
    options = {"model": fleet.model, "messages": QUESTION, "max_tokens": 24, "temperature": 0, "extra_body": COLD}
    plain = await client.chat.completions.create(**options)
    stream = await client.chat.completions.create(**options, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert len(pieces) > 5
    assert "".join(pieces) == plain.choices[0].message.content


async def test_usage_comes_last_in_a_stream_that_asks_for_it(client, fleet) -> None:
    stream = await client.chat.completions.create(
        model=fleet.model, messages=QUESTION, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


async def test_stop_ends_the_answer_before_the_stop_text(client, fleet) -> None:
    options = {"model": fleet.model, "messages": QUESTION, "max_tokens": 40, "temperature": 0, "extra_body": COLD}
    full = (await client.chat.completions.create(**options)).choices[0].message.content or ""
    word = full.split()[3]
    cut = await client.chat.completions.create(**options, stop=[word])
    assert word not in (cut.choices[0].message.content or "")
    assert cut.choices[0].finish_reason == "stop"


async def test_a_seed_makes_an_answer_repeatable(client, fleet) -> None:
    options = {"messages": QUESTION, "max_tokens": 16, "temperature": 0.9, "seed": 42, "extra_body": COLD}
    answers = [await client.chat.completions.create(model=fleet.model, **options) for _ in range(2)]
    texts = {answer.choices[0].message.content for answer in answers}
    assert len(texts) == 1


async def test_json_schema_gives_json_of_that_schema(client, fleet) -> None:
    answer = await client.chat.completions.create(
        model=fleet.model,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}},
        max_tokens=128,
        temperature=0,
    )
    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


async def test_a_tool_is_called(client, fleet) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 30}},
                "required": ["city"],
            },
        },
    }
    answer = await client.chat.completions.create(
        model=fleet.model,
        messages=[{"role": "user", "content": "Use the get_weather function for the city Paris."}],
        tools=[tool],
        tool_choice="required",
        max_tokens=128,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "get_weather"
    assert "city" in json.loads(calls[0].function.arguments)


async def test_logprobs_are_given(client, fleet) -> None:
    answer = await client.chat.completions.create(
        model=fleet.model, messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert content
    assert len(content[0].top_logprobs) == 2


async def test_an_unknown_model_is_not_found(client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="nope", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nope")


async def test_a_wrong_field_is_a_bad_request_that_names_it(client, fleet) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=fleet.model, messages=QUESTION, temperature="hot")
    assert caught.value.param == "temperature"


async def test_twenty_streams_on_four_slots_all_finish(client, fleet) -> None:
    async def one(number: int) -> str:
        stream = await client.chat.completions.create(
            model=fleet.model,
            messages=[{"role": "user", "content": f"Count from {number}."}],
            max_tokens=16,
            stream=True,
        )
        finish = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
        return finish[-1]

    assert all(await asyncio.gather(*(one(number) for number in range(20))))


async def test_the_text_at_temperature_0_is_the_engines_own(client, fleet, engine_chat) -> None:
    options = {"model": fleet.model, "messages": QUESTION, "max_tokens": 32, "temperature": 0}
    direct = await engine_chat(options | COLD)
    through = await client.chat.completions.create(**options, extra_body=COLD)
    assert through.choices[0].message.content == direct["choices"][0]["message"]["content"]


async def test_the_other_operations_answer_too(client, fleet) -> None:
    done = await client.completions.create(model=fleet.model, prompt="Once upon a time", max_tokens=4)
    assert done.choices[0].text
