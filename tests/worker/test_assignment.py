"""Which devices an engine gets when nobody said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.node import Device
from worker.assignment import spec_of, usable_gpus
from worker.settings import ModelSettings, WorkerSettings


def device(name: str, **more: Any) -> Device:
    backend = name.partition(":")[0]
    return Device(device=name, backend=backend, name=name, memory_total_bytes=1, memory_free_bytes=1, **more)


def model(**more: Any) -> ModelSettings:
    return ModelSettings.model_validate({"model": "m", "path": "/m.gguf"} | more)


SETTINGS = WorkerSettings.model_validate({"node": "n1", "slots": 3})
CPU, GPU, OTHER = device("cpu:0"), device("cuda:0"), device("cuda:1")


def test_all_gpus_are_taken_before_the_cpu() -> None:
    assert spec_of(model(), SETTINGS, [CPU, GPU, OTHER], []).devices == ("cuda:0", "cuda:1")


def test_a_node_without_gpus_uses_its_cpu() -> None:
    assert spec_of(model(), SETTINGS, [CPU], []).devices == ("cpu:0",)


def test_a_device_with_a_reason_is_there_to_be_seen_only() -> None:
    assert usable_gpus([CPU, device("cuda:0", reason="the driver does not answer"), OTHER]) == ("cuda:1",)


def test_the_settings_decide_where_they_say_something() -> None:
    spec = spec_of(model(devices=["cuda:1"], slots=7, context_tokens=512), SETTINGS, [CPU, GPU, OTHER], [])
    assert (spec.devices, spec.slots, spec.context_tokens) == (("cuda:1",), 7, 512)
    assert spec_of(model(), SETTINGS, [CPU], []).slots == 3
    assert spec.path == Path("/m.gguf")
