"""Which devices an engine may have, and what it is asked to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.node import Device
from worker.assignment import cpus_for, gpus_for, spec_of, usable_gpus
from worker.settings import ModelSettings, WorkerSettings


def device(name: str, **more: Any) -> Device:
    backend = name.partition(":")[0]
    return Device(device=name, backend=backend, name=name, memory_total_bytes=1, memory_free_bytes=1, **more)


def model(**more: Any) -> ModelSettings:
    return ModelSettings.model_validate({"model": "m", "path": "/m.gguf"} | more)


SETTINGS = WorkerSettings.model_validate({"node": "n1", "slots": 3})
CPU, GPU, OTHER = device("cpu:0"), device("cuda:0"), device("cuda:1")
BROKEN = device("cuda:1", reason="the driver does not answer")


def test_gpus_come_before_the_cpu_which_is_not_used_beside_them() -> None:
    assert gpus_for(model(), [CPU, GPU, OTHER], engine_sees_gpus=True) == ("cuda:0", "cuda:1")
    assert cpus_for(model(), ("cuda:0", "cuda:1")) == ()


def test_a_node_without_gpus_uses_its_cpu() -> None:
    assert gpus_for(model(), [CPU], engine_sees_gpus=False) == ()
    assert cpus_for(model(), ()) == ("cpu:0",)


def test_a_device_with_a_reason_is_not_used() -> None:
    assert usable_gpus([CPU, GPU, BROKEN]) == ("cuda:0",)


def test_the_cpu_does_not_take_over_in_silence_from_gpus_that_failed() -> None:
    assert gpus_for(model(), [CPU, BROKEN], engine_sees_gpus=True) == ("cuda:1",)
    assert cpus_for(model(), ("cuda:1",)) == ()


def test_an_engine_program_without_gpus_uses_the_cpu_beside_them() -> None:
    unlisted = device("cuda:0", reason="the engine does not list it")
    assert gpus_for(model(), [CPU, unlisted], engine_sees_gpus=False) == ()
    assert cpus_for(model(), ()) == ("cpu:0",)


def test_a_model_may_be_allowed_to_fall_back_to_the_cpu() -> None:
    assert cpus_for(model(cpu_fallback=True), ("cuda:0",)) == ("cpu:0",)
    assert cpus_for(model(devices=["cuda:0"], cpu_fallback=True), ("cuda:0",)) == ("cpu:0",)


def test_devices_that_the_operator_names_are_kept_in_their_order() -> None:
    named = model(devices=["cuda:1", "cuda:0", "cpu:0"])
    assert gpus_for(named, [CPU, GPU, OTHER], engine_sees_gpus=True) == ("cuda:1", "cuda:0")
    assert cpus_for(named, ("cuda:1", "cuda:0")) == ("cpu:0",)
    assert cpus_for(model(devices=["cuda:1"]), ("cuda:1",)) == ()


def test_a_spec_has_the_models_settings_over_the_nodes() -> None:
    spec = spec_of(model(slots=7, context_tokens=512), SETTINGS, [], ("cuda:1",))
    assert (spec.devices, spec.slots, spec.context_tokens, spec.path) == (("cuda:1",), 7, 512, Path("/m.gguf"))
    assert spec_of(model(), SETTINGS, [], ("cpu:0",)).slots == 3


def test_the_models_environment_goes_over_what_pins_it_to_its_device() -> None:
    class Pin:
        backend = "cuda"

        def discover(self) -> bool:
            return True

        def sample(self) -> list[Device]:
            return []

        def environment(self, devices: Any) -> dict[str, str]:
            return {"CUDA_VISIBLE_DEVICES": ",".join(devices), "OTHER": "1"}

    spec = spec_of(model(environment={"OTHER": "2"}), SETTINGS, [Pin()], ("cuda:1", "cuda:0"))
    assert spec.environment == {"CUDA_VISIBLE_DEVICES": "cuda:1,cuda:0", "OTHER": "2"}
