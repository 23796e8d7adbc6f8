"""What a client may put into a request body, checked once, before anything is routed. The bytes then travel untouched.

An allow-list: a field that is not here is refused by name. That is what OpenAI does with fields it does not know, and
it keeps out the fields of llama-server that have crashed or exploited engines (`REFUSED` gives each one's reason).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import orjson

from schemas.errors import InvalidJson, InvalidRequest, UnknownField
from schemas.subjects import check_model_id

DEPTH_LIMIT: Final = 64
"""Deepest nesting of a field's value. Grammars are built by recursion over JSON schemas, on the engine's own stack."""
ITEMS_LIMIT: Final = 20_000
"""Items in one array of a request, so that a small body cannot ask for millions of pieces of work."""
GRAMMAR_LIMIT_CHARS: Final = 32_768
PATTERN_LIMIT_CHARS: Final = 512
BRACKETS_LIMIT: Final = 32

Check = Callable[[str, Any], None]
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckedBody:
    """What routing needs to know of a body that was found good."""

    model: str
    stream: bool
    include_usage: bool
    fields: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict[str, Any])
    """The body as it was parsed, for whoever needs more of it at once; not to be kept."""


def check_body(op: str, raw: bytes) -> CheckedBody:
    """Check the body of one operation.

    Raises `InvalidJson` (no JSON object, or nested too deep), `UnknownField` or `InvalidRequest` (`param` names the
    field, the message says what to send) and `InvalidName` (the model id).
    """
    body = parse_object(raw)
    fields = FIELDS[op]
    for name, value in body.items():
        check = fields.get(name)
        if check is None:
            raise _unknown(name, fields)
        if value is not None:
            check(name, value)
    for name in ("model", *REQUIRED[op]):
        if body.get(name) is None:
            raise InvalidRequest(f"{name}: this field is required", param=name)
    options = cast(Object, body.get("stream_options") or {})
    return CheckedBody(
        model=check_model_id(body["model"]),
        stream=body.get("stream") is True,
        include_usage=options.get("include_usage") is True,
        fields=body,
    )


def parse_object(raw: bytes) -> Object:
    """The JSON object in `raw`. Raises `InvalidJson`."""
    try:
        body: object = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"the body is not JSON: {error.msg} at byte {error.pos}") from error
    if not isinstance(body, dict):
        raise InvalidJson("the body is JSON, but not an object; send {…}")
    return cast(Object, body)


def _unknown(name: str, fields: Mapping[str, Check]) -> InvalidRequest:
    shown = name if len(name) <= 64 else f"{name[:64]}…"
    if name in REFUSED:
        return InvalidRequest(f"{shown}: not taken from clients: {REFUSED[name]}", param=shown)
    near = difflib.get_close_matches(shown, fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; leave it out"
    return UnknownField(f"{shown}: no such field for this operation{hint}", param=shown)


_KINDS: Final = {
    "dict": "an object",
    "list": "an array",
    "str": "a string",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
}


# -- checks: (name, value) → nothing, or InvalidRequest ---------------------------------------------------------------
def _wrong(name: str, wanted: str, value: Any) -> InvalidRequest:
    return InvalidRequest(f"{name}: send {wanted}, not {_KINDS.get(type(value).__name__, 'null')}", param=name)


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)


def _string(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _wrong(name, "a string", value)


def _number(least: float = -math.inf, most: float = math.inf, *, whole: bool = False) -> Check:
    wanted = "a whole number" if whole else "a number"
    bounds = "" if math.isinf(least) and math.isinf(most) else f" from {least} to {most}"
    if not math.isinf(least) and math.isinf(most):
        bounds = f" of {least} or more"

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, wanted, value)
        if (whole and value != int(value)) or not least <= value <= most:
            raise InvalidRequest(f"{name}: send {wanted}{bounds}", param=name)

    return check


def _array(name: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _wrong(name, "an array", value)
    items = cast(list[Any], value)
    if len(items) > ITEMS_LIMIT:
        raise InvalidRequest(f"{name}: {len(items)} items; at most {ITEMS_LIMIT} are allowed", param=name)
    _bounded(name, items)


def _object(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    _bounded(name, cast(Object, value))


def _schema(name: str, value: Any) -> None:
    _object(name, value)
    for text in _patterns(value):
        _check_nesting(name, "pattern", text, PATTERN_LIMIT_CHARS)


def _grammar(name: str, value: Any) -> None:
    _string(name, value)
    _check_nesting(name, "grammar", value, GRAMMAR_LIMIT_CHARS)


def _one_of(*checks: Check, wanted: str) -> Check:
    def check(name: str, value: Any) -> None:
        for option in checks:
            try:
                option(name, value)
            except InvalidRequest:
                continue
            return
        raise _wrong(name, wanted, value)

    return check


def _choice(*options: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in options:
            raise InvalidRequest(f"{name}: send one of {', '.join(options)}", param=name)

    return check


def _messages(name: str, value: Any) -> None:
    _array(name, value)
    if not value:
        raise InvalidRequest(f"{name}: send at least one message", param=name)
    for index, item in enumerate(cast(list[Any], value)):
        where = f"{name}[{index}]"
        if not isinstance(item, dict):
            raise _wrong(where, "an object with role and content", item)
        message = cast(Object, item)
        if not isinstance(message.get("role"), str):
            raise InvalidRequest(f"{where}.role: send a string such as 'user'", param=f"{where}.role")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise _wrong(f"{where}.content", "a string or an array of parts", content)


def _tools(name: str, value: Any) -> None:
    _array(name, value)
    for index, item in enumerate(cast(list[Any], value)):
        _schema(f"{name}[{index}]", item)


def _stop(name: str, value: Any) -> None:
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    if len(values) > 64 or not all(isinstance(item, str) for item in values):
        raise _wrong(name, "a string or an array of at most 64 strings", value)


def _tokens_or_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        _one_of(_array, wanted="a string or an array")(name, value)


def _bounded(name: str, value: Any) -> None:
    """Refuse what is nested too deep, without recursion of our own."""
    level: list[Any] = [value]
    for _ in range(DEPTH_LIMIT):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise InvalidRequest(f"{name}: nested deeper than {DEPTH_LIMIT} levels", param=name)


def _children(item: Any) -> list[Any]:
    inner: list[Any] = []
    if isinstance(item, dict):
        inner = list(cast(Object, item).values())
    elif isinstance(item, list):
        inner = cast(list[Any], item)
    return [child for child in inner if isinstance(child, dict | list)]


def _patterns(value: Any) -> list[str]:
    found: list[Any] = []
    level: list[Any] = [value]
    while level:
        found += [cast(Object, item).get("pattern") for item in level if isinstance(item, dict)]
        level = [child for item in level for child in _children(item)]
    return [pattern for pattern in found if isinstance(pattern, str)]


def _check_nesting(name: str, what: str, text: str, limit_chars: int) -> None:
    if len(text) > limit_chars:
        raise InvalidRequest(f"{name}: a {what} of {len(text)} characters; at most {limit_chars}", param=name)
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth > BRACKETS_LIMIT:
            raise InvalidRequest(f"{name}: a {what} with brackets over {BRACKETS_LIMIT} deep", param=name)


# -- fields ----------------------------------------------------------------------------------------------------------
_count = _number(0, 1 << 31, whole=True)
_limit = _number(-1, 1 << 31, whole=True)
_any_number = _number()
_penalty = _number(-100, 100)

COMMON: Final[dict[str, Check]] = {
    "model": _string,
    "user": _string,
    "metadata": _object,
    "store": _boolean,
    "service_tier": _string,
    "safety_identifier": _string,
    "prompt_cache_key": _string,
}

SAMPLING: Final[dict[str, Check]] = {
    "stream": _boolean,
    "temperature": _number(0, 100),
    "top_p": _number(0, 1),
    "top_k": _limit,
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1),
    "top_n_sigma": _any_number,
    "seed": _number(-(1 << 63), 1 << 63, whole=True),
    "stop": _stop,
    "max_tokens": _limit,
    "n_predict": _limit,
    "n": _number(1, 128, whole=True),
    "presence_penalty": _penalty,
    "frequency_penalty": _penalty,
    "repeat_penalty": _penalty,
    "repeat_last_n": _limit,
    "logit_bias": _one_of(_object, _array, wanted="an object or an array"),
    "dynatemp_range": _any_number,
    "dynatemp_exponent": _any_number,
    "mirostat": _number(0, 2, whole=True),
    "mirostat_tau": _any_number,
    "mirostat_eta": _any_number,
    "dry_multiplier": _any_number,
    "dry_base": _any_number,
    "dry_allowed_length": _limit,
    "dry_penalty_last_n": _limit,
    "dry_sequence_breakers": _array,
    "xtc_probability": _number(0, 1),
    "xtc_threshold": _number(0, 1),
    "samplers": _one_of(_array, _string, wanted="a string or an array"),
    "ignore_eos": _boolean,
    "n_keep": _limit,
    "n_probs": _number(0, 1000, whole=True),
    "min_keep": _count,
    "post_sampling_probs": _boolean,
    "cache_prompt": _boolean,
    "return_tokens": _boolean,
    "return_progress": _boolean,
    "timings_per_token": _boolean,
    "t_max_predict_ms": _limit,
    "grammar": _grammar,
    "json_schema": _schema,
}

_CHAT: Final[dict[str, Check]] = (
    COMMON
    | SAMPLING
    | {
        "messages": _messages,
        "stream_options": _object,
        "max_completion_tokens": _limit,
        "logprobs": _boolean,
        "top_logprobs": _number(0, 20, whole=True),
        "response_format": _schema,
        "tools": _tools,
        "tool_choice": _one_of(_string, _object, wanted="a string or an object"),
        "parallel_tool_calls": _boolean,
        "parse_tool_calls": _boolean,
        "modalities": _array,
        "reasoning_effort": _string,
        "reasoning_format": _string,
        "verbosity": _string,
        "chat_template_kwargs": _object,
        "add_generation_prompt": _boolean,
        "continue_final_message": _boolean,
    }
)

FIELDS: Final[dict[str, dict[str, Check]]] = {
    "chat": _CHAT,
    "apply-template": _CHAT,
    "completions": COMMON
    | SAMPLING
    | {
        "prompt": _tokens_or_text,
        "stream_options": _object,
        "suffix": _string,
        "echo": _boolean,
        "best_of": _number(1, 128, whole=True),
        "logprobs": _number(0, 20, whole=True),
        "response_format": _schema,
    },
    "infill": COMMON
    | SAMPLING
    | {
        "input_prefix": _string,
        "input_suffix": _string,
        "input_extra": _array,
        "prompt": _tokens_or_text,
    },
    "embeddings": COMMON
    | {
        "input": _tokens_or_text,
        "encoding_format": _choice("float", "base64"),
        "dimensions": _number(1, 1 << 20, whole=True),
    },
    "rerank": COMMON
    | {
        "query": _string,
        "documents": _array,
        "top_n": _count,
        "return_documents": _boolean,
    },
    "responses": COMMON
    | SAMPLING
    | {
        "input": _tokens_or_text,
        "instructions": _string,
        "max_output_tokens": _limit,
        "tools": _tools,
        "tool_choice": _one_of(_string, _object, wanted="a string or an object"),
        "parallel_tool_calls": _boolean,
        "reasoning": _object,
        "text": _schema,
        "include": _array,
        "truncation": _string,
        "top_logprobs": _number(0, 20, whole=True),
        "stream_options": _object,
    },
    "messages": COMMON
    | SAMPLING
    | {
        "messages": _messages,
        "system": _one_of(_string, _array, wanted="a string or an array"),
        "stop_sequences": _stop,
        "tools": _tools,
        "tool_choice": _object,
        "thinking": _object,
    },
    "tokenize": {
        "model": _string,
        "content": _tokens_or_text,
        "add_special": _boolean,
        "parse_special": _boolean,
        "with_pieces": _boolean,
    },
    "detokenize": {"model": _string, "tokens": _array},
}
"""Operation → field → check. `transcriptions` is multipart and has no JSON body."""

REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "chat": ("messages",),
    "apply-template": ("messages",),
    "completions": ("prompt",),
    "infill": (),
    "embeddings": ("input",),
    "rerank": ("query", "documents"),
    "responses": ("input",),
    "messages": ("messages", "max_tokens"),
    "tokenize": ("content",),
    "detokenize": ("tokens",),
}

REFUSED: Final[dict[str, str]] = {
    "n_discard": "it has crashed engines",
    "id_slot": "the engine chooses the slot; naming one reads another client's cache",
    "lora": "adapters belong to the model's profile",
    "grammar_lazy": "it overrides the engine's own parsing",
    "grammar_triggers": "it overrides the engine's own parsing",
    "preserved_tokens": "it overrides the engine's own parsing",
    "chat_format": "it overrides the engine's chat parser",
    "chat_parser": "it overrides the engine's chat parser",
    "generation_prompt": "it overrides the engine's chat parser",
    "chat_template": "templates belong to the model's profile",
    "speculative": "speculation belongs to the model's profile",
}
"""Fields of llama-server that only an operator may set, and why."""
