"""What simulated engines say, byte for byte as llama-server shapes it. Text is numbered, as the fake engine's."""

from __future__ import annotations

from typing import Any, Final

import orjson

DONE: Final = b"data: [DONE]\n\n"


def delta(model: str, first: int, count: int) -> bytes:
    """One event with the tokens `first` to `first + count - 1`."""
    text = "".join([f"t{number} " for number in range(first, first + count)])
    return _event(model, {"index": 0, "delta": {"content": text}, "finish_reason": None}, {})


def last(model: str, tokens: int) -> bytes:
    """The closing event of a stream, and `[DONE]`."""
    return _event(model, {"index": 0, "delta": {}, "finish_reason": "stop"}, _tail(tokens)) + DONE


def whole(model: str, tokens: int) -> bytes:
    """An answer that is no stream."""
    text = "".join([f"t{number} " for number in range(tokens)])
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return orjson.dumps(
        {"choices": [choice], "created": 1, "id": "chatcmpl-sim", "model": model, "object": "chat.completion"}
        | _tail(tokens)
    )


def error(code: int, message: str, kind: str) -> bytes:
    """A refusal."""
    return orjson.dumps({"error": {"code": code, "message": message, "type": kind}})


def _event(model: str, choice: dict[str, Any], more: dict[str, Any]) -> bytes:
    kind = "chat.completion.chunk"
    body = {"choices": [choice], "created": 1, "id": "chatcmpl-sim", "model": model, "object": kind} | more
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _tail(tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    return {"usage": usage, "timings": {"cache_n": 0, "prompt_n": 10, "predicted_n": tokens}}
