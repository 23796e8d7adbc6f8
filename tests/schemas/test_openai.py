"""Request bodies: what clients send passes, what is wrong is named, what is hostile is cheap to refuse."""

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidJson, InvalidName, InvalidRequest, PunaError, UnknownField
from schemas.openai import FIELDS, REFUSED, REQUIRED, CheckedBody, check_body
from schemas.request import OPS


def chat(**fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields)


def test_a_plain_chat_request_is_good() -> None:
    assert check_body("chat", chat()) == CheckedBody(model="m", stream=False, include_usage=False)


def test_streaming_with_usage_is_seen() -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    assert check_body("chat", body) == CheckedBody(model="m", stream=True, include_usage=True)


def test_all_that_sdks_send_is_taken() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]+$"}}}
    check_body(
        "chat",
        chat(
            temperature=0,
            top_p=1.0,
            seed=7,
            stop=["a", "b"],
            n=2,
            logprobs=True,
            top_logprobs=3,
            max_completion_tokens=5,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}],
            tool_choice="auto",
            logit_bias={"15": -100},
            user="u",
            metadata={"k": "v"},
            frequency_penalty=None,
            chat_template_kwargs={"enable_thinking": False},
        ),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"max_tokens": 1e30}, "max_tokens"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"model": 7}, "model"),
        ({"model": None}, "model"),
        ({"messages": None}, "messages"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_body("chat", chat(**fields))
    assert caught.value.param == param
    assert param.split("[")[0] in caught.value.message


def test_an_unknown_field_is_named_with_the_nearest_right_one() -> None:
    with pytest.raises(UnknownField, match="did you mean 'temperature'"):
        check_body("chat", chat(temperatur=1))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_fields_that_hurt_engines_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_body("chat", chat(**{name: 1}))
    assert caught.value.param == name
    assert REFUSED[name] in caught.value.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"x"', b"nul", b"\xff\xfe", b"{}garbage", b"NaN"])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidJson):
        check_body("chat", raw)


@pytest.mark.parametrize("depth", [100_000, 900])
def test_deep_nesting_is_refused_quickly(depth: int) -> None:
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":'
        + b'{"a":' * depth
        + b"1"
        + b"}" * depth
        + b"}"
    )
    started = time.perf_counter()
    with pytest.raises(InvalidRequest):
        check_body("chat", raw)
    assert time.perf_counter() - started < 0.5


def test_deep_schemas_patterns_and_grammars_never_reach_an_engine() -> None:
    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"properties": {"a": deep}}
    for field in (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": deep}}},
        {"json_schema": {"type": "string", "pattern": "(" * 100 + ")" * 100}},
        {"json_schema": {"type": "string", "pattern": "a" * 1000}},
        {"grammar": "root ::= " + "(" * 100 + '"a"' + ")" * 100},
    ):
        with pytest.raises(InvalidRequest):
            check_body("chat", chat(**field))


def test_a_model_id_is_checked_as_strictly_as_everywhere() -> None:
    with pytest.raises(InvalidName):
        check_body("chat", chat(model="../x"))


def test_every_operation_with_a_json_body_has_fields() -> None:
    assert set(FIELDS) == set(REQUIRED) == set(OPS) - {"transcriptions"}
    for op, required in REQUIRED.items():
        assert set(required) <= set(FIELDS[op])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(sorted(FIELDS)), st.dictionaries(st.sampled_from(sorted(FIELDS["chat"])) | st.text(), JSON))
def test_no_body_does_anything_but_pass_or_be_refused(op: str, body: dict[str, Any]) -> None:
    try:
        raw = orjson.dumps(body)
    except (TypeError, orjson.JSONEncodeError):
        return
    try:
        check_body(op, raw)
    except PunaError as error:
        assert 400 <= error.http_status < 500
        assert len(error.message) < 400
