"""The memory plan by hand: every figure here was worked out on paper, not by the code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from worker.memory import CACHE_BYTES_PER_VALUE, Correction, MemoryPlan, Serving, cache_bytes, compute_bytes, gib, plan
from worker.modelfile import Layer, ModelFile

SMOLLM2 = ModelFile(
    architecture="llama",
    name="SmolLM2 135M",
    parameters=134_515_008,
    quantisation="Q4_1",
    tensor_bytes=96_576_768,
    context_tokens=8192,
    embedding_length=576,
    feed_forward_length=1536,
    vocabulary=49_152,
    layers=(Layer(kv_heads=3, key_length=64, value_length=64),) * 30,
    chat_template=True,
    capabilities=("chat", "completion"),
)
A_TOKEN = 23_040
"""30 layers * 3 heads * (64 + 64) values * 2 bytes."""


def serving(tokens: int = 8192, slots: int = 1, **more: Any) -> Serving:
    return Serving(context_tokens=tokens, slots=slots, **more)


def test_the_small_models_cache_takes_23040_bytes_a_token() -> None:
    assert cache_bytes(SMOLLM2, serving(8192)) == A_TOKEN * 8192 == 188_743_680
    assert cache_bytes(SMOLLM2, serving(8192, slots=4)) == 754_974_720


def test_the_cache_of_each_slot_is_rounded_up_to_256_tokens() -> None:
    assert cache_bytes(SMOLLM2, serving(1)) == A_TOKEN * 256
    assert cache_bytes(SMOLLM2, serving(257, slots=3)) == A_TOKEN * 512 * 3
    assert cache_bytes(SMOLLM2, serving(0)) == 0


def test_a_quantised_cache_takes_its_blocks() -> None:
    # q8_0: 34 bytes for 32 values; q4_0: 18. Keys and values each 30 * 3 * 64 = 5760 values a token.
    both = serving(256, cache_type_k="q8_0", cache_type_v="q8_0")
    assert cache_bytes(SMOLLM2, both) == 256 * 2 * 5760 // 32 * 34
    mixed = serving(256, cache_type_k="q8_0", cache_type_v="q4_0")
    assert cache_bytes(SMOLLM2, mixed) == 256 * (5760 // 32 * 34 + 5760 // 32 * 18)
    assert CACHE_BYTES_PER_VALUE["f32"] == 2 * CACHE_BYTES_PER_VALUE["f16"]


def test_a_window_keeps_what_it_sees_and_a_batch() -> None:
    sliding = Layer(kv_heads=1, key_length=128, value_length=128, window_tokens=1024)
    whole = replace(sliding, window_tokens=None)
    model = replace(SMOLLM2, layers=(sliding, whole))
    # a token of one layer: 256 values * 2 bytes; the window holds 1024 + 512 tokens, the other layer all 8192
    assert cache_bytes(model, serving(8192)) == 512 * (1536 + 8192)
    assert cache_bytes(model, serving(512)) == 512 * (512 + 512)


def test_a_layer_without_attention_has_no_cache() -> None:
    model = replace(SMOLLM2, layers=(Layer(0, 64, 64), *SMOLLM2.layers[:1]))
    assert cache_bytes(model, serving(256)) == 256 * 3 * 128 * 2


def test_compute_holds_the_logits_and_activations_of_a_batch() -> None:
    # 512 rows * 4 bytes * (49152 + 8 * 576 + 2 * 1536) + 64 MiB
    assert compute_bytes(SMOLLM2, serving()) == 512 * 4 * 56_832 + 67_108_864 == 183_500_800
    assert compute_bytes(SMOLLM2, serving(64, slots=2)) == 128 * 4 * 56_832 + 67_108_864


def test_the_whole_plan_of_the_small_model_is_told_by_purpose() -> None:
    whole = plan(SMOLLM2, serving(8192, slots=4, projector_bytes=1 << 30))
    assert whole == MemoryPlan(96_576_768, 754_974_720, 183_500_800, 1 << 30)
    assert whole.total_bytes == 2_108_794_112
    assert whole.text() == "1.96 GiB (weights 0.09 GiB + KV cache 0.70 GiB + compute 0.17 GiB + projector 1.00 GiB)"
    assert "projector" not in plan(SMOLLM2, serving()).text()


def test_an_unknown_cache_type_is_named() -> None:
    with pytest.raises(ValueError, match="'f8' is none of f32"):
        plan(SMOLLM2, serving(cache_type_k="f8"))


def test_a_correction_moves_half_way_and_no_measurement_rules_alone() -> None:
    assert Correction().after(1000, 1200).ratio == pytest.approx(1.1)
    assert Correction().after(1000, 1200).after(1000, 1200).ratio == pytest.approx(1.15)
    assert Correction().after(1000, 100_000).ratio == 2.0
    assert Correction().after(1000, 1).ratio == 0.75
    assert Correction(1.3).after(0, 5) == Correction(1.3).after(5, 0) == Correction(1.3)


def test_bytes_for_people_are_gib() -> None:
    assert gib(3 << 29) == "1.50 GiB"
