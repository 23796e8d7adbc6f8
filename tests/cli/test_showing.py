"""What `puna show` says of a model's file."""

from __future__ import annotations

from typing import Any

from gateway.cli.showing import facts

FILE: dict[str, Any] = {
    "layers": 30,
    "embedding_length": 576,
    "vocabulary": 49152,
    "api_capabilities": ["OPENAI_V1_CHAT_COMPLETIONS", "OPENAI_V1_COMPLETIONS"],
    "memory_bytes": 203_000_000,
    "memory_context_tokens": 8192,
    "cache_bytes_per_token": 23_040,
}


def test_what_a_file_lets_expect_is_told_in_words() -> None:
    told = facts({"id": "m", "state": "unloaded", "file": FILE})
    assert told["shape"] == "30 layers, 576 wide, 49152 tokens known"
    assert told["takes"] == "about 203.0 MB of memory, one slot of 8192 tokens, 23.0 kB a further token"
    assert told["interfaces"] == "OPENAI_V1_CHAT_COMPLETIONS, OPENAI_V1_COMPLETIONS"


def test_what_a_file_does_not_tell_has_no_line() -> None:
    assert not {"shape", "takes", "interfaces"} & set(facts({"id": "m", "state": "ready", "file": None}))
