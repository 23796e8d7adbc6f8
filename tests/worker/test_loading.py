"""What is looked at before an engine starts: its files, its context, the room on its devices."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.node import Device, DeviceMetrics, ProcessMemory
from worker.enginespec import EngineSpec
from worker.loading import Loader, Unfit
from worker.memory import Correction
from worker.modelfile import describe
from worker.room import Claim, Room, room
from worker.taken import Corrections, taken_bytes

GIB = 1 << 30
MIB = 1 << 20
A_TOKEN = 256
"""Cache of the small file's model."""
FIXED = 4 * 192 + 64 * MIB + 4 * 512 * (3 + 8 * 64 + 2 * 128)
"""Its weights, what a backend takes, and a batch of 512 rows."""


def gpu(free: int, name: str = "cuda:0", **more: Any) -> Device:
    backend = name.partition(":")[0]
    return Device(device=name, backend=backend, name="G", memory_total_bytes=80 * GIB, memory_free_bytes=free, **more)


class Devices:
    """What devices say; a test may change it."""

    def __init__(self, *devices: Device) -> None:
        self.current = devices

    async def __call__(self) -> tuple[Device, ...]:
        return self.current


@pytest.fixture
def loader(tmp_path: Path) -> Callable[..., Loader]:
    def make(*devices: Device, **settings: Any) -> Loader:
        return Loader(tmp_path / "loads", Devices(*devices), **settings)

    return make


@pytest.fixture
def spec(tmp_path: Path, write_model: Callable[..., Path]) -> Callable[..., EngineSpec]:
    def make(pairs: dict[str, Any] | None = None, **more: Any) -> EngineSpec:
        path = more.pop("path", None) or write_model(tmp_path / "m.gguf", pairs)
        return EngineSpec("m", path, **{"devices": ("cuda:0",), **more})

    return make


async def reason(work: Awaitable[Any]) -> str:
    with pytest.raises(Unfit) as caught:
        await work
    return caught.value.reason


# -- files


async def test_a_file_is_described_and_its_plan_told(loader, spec, caplog) -> None:
    caplog.set_level(logging.INFO)
    load = await loader(gpu(8 * GIB)).prepare("e0", spec(slots=2, context_tokens=1024))
    what = load.capabilities
    assert (what.context_tokens, what.trained_context_tokens, what.parameters) == (1024, 4096, 192)
    assert (what.architecture, what.quantisation, what.chat_template) == ("llama", "F32", True)
    assert (what.size_bytes, what.can) == (768, ("chat", "completion"))
    assert load.needed_bytes == FIXED + 2 * 1024 * A_TOKEN
    (line,) = [record for record in caplog.records if getattr(record, "event", "") == "engine_planned"]
    assert line.memory_bytes == load.needed_bytes
    assert line.plan.startswith("0.06 GiB (weights")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no GGUF"),
        (b"GGUF", "no GGUF"),
        (b"<html>not found, sorry</html>", "begin with 'GGUF'"),
        (b"GGUF" + b"\xff" * 40, "version"),
    ],
)
async def test_a_file_that_is_none_is_unfit_with_its_name(loader, spec, tmp_path, content, words) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    told = await reason(loader().prepare("e0", spec(path=path)))
    assert f"the model file {path} cannot be used" in told
    assert words in told


async def test_what_cannot_be_read_is_unfit_with_the_systems_reason(loader, spec, tmp_path) -> None:
    assert "gone.gguf cannot be read: No such file" in await reason(
        loader().prepare("e0", spec(path=tmp_path / "gone.gguf"))
    )
    assert "no regular file" in await reason(loader().prepare("e0", spec(path=tmp_path)))
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "no regular file" in await reason(loader().prepare("e0", spec(path=tmp_path / "pipe.gguf")))


async def test_a_file_is_read_again_only_after_it_changed(loader, spec, tmp_path, write_model, monkeypatch) -> None:
    reads: list[Path] = []
    monkeypatch.setattr("worker.loading.describe", lambda path: (reads.append(path), describe(path))[1])
    one, what = loader(), spec()
    for _ in range(3):
        assert (await one.prepare("e0", what)).model.context_tokens == 4096
    assert len(reads) == 1
    write_model(tmp_path / "m.gguf", {"llama.context_length": 512})
    assert (await one.prepare("e0", what)).model.context_tokens == 512


async def test_a_file_that_was_mended_is_fit_at_the_next_try(loader, spec, tmp_path, write_model) -> None:
    one = loader()
    what = spec()
    what.path.write_bytes(b"GGUF")
    await reason(one.prepare("e0", what))
    write_model(what.path)
    assert (await one.prepare("e0", what)).model.architecture == "llama"


async def test_a_projector_is_checked_counted_and_gives_its_ability(loader, spec, tmp_path, write_model) -> None:
    eye = write_model(tmp_path / "eye.gguf", {"general.architecture": "clip", "clip.has_vision_encoder": True})
    load = await loader(gpu(8 * GIB)).prepare("e0", spec(flags={"--mmproj": str(eye)}))
    assert load.plan.projector_bytes == 768
    assert load.capabilities.can == ("chat", "completion", "vision")
    eye.write_bytes(b"nothing")
    assert "eye.gguf cannot be used" in await reason(loader().prepare("e0", spec(flags={"mmproj": str(eye)})))


def test_all_parts_of_a_split_model_count_and_none_may_be_missing(tmp_path, write_model) -> None:
    first = write_model(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(FileNotFoundError, match="00002-of-00002"):
        describe(first)
    write_model(tmp_path / "m-00002-of-00002.gguf")
    whole = describe(first)
    assert (whole.parameters, whole.tensor_bytes) == (384, 1536)
    with pytest.raises(ValueError, match="part 2 of a split model; name the first, m-00001"):
        describe(tmp_path / "m-00002-of-00002.gguf")


@pytest.mark.parametrize(
    ("pairs", "windows"),
    [
        ({}, [None, None]),
        ({"llama.attention.sliding_window": 1024}, [None, None]),
        ({"llama.attention.sliding_window": 1024, "llama.attention.sliding_window_pattern": [1, 0]}, [1024, None]),
        ({"llama.attention.sliding_window": 1024, "llama.attention.sliding_window_pattern": 2}, [1024, None]),
    ],
)
def test_sliding_windows_are_read_off_the_header(tmp_path, write_model, pairs, windows) -> None:
    assert [layer.window_tokens for layer in describe(write_model(tmp_path / "m.gguf", pairs)).layers] == windows


def test_a_layer_without_attention_is_read_as_one(tmp_path, write_model) -> None:
    model = describe(write_model(tmp_path / "m.gguf", {"llama.attention.head_count_kv": [0, 2]}))
    assert [layer.kv_heads for layer in model.layers] == [0, 2]


# -- context


@pytest.mark.parametrize(("trained", "chosen"), [(512, 512), (4096, 4096), (8192, 8192), (131072, 8192)])
async def test_the_default_context_is_the_models_up_to_8192(loader, spec, trained, chosen) -> None:
    load = await loader(gpu(8 * GIB)).prepare("e0", spec({"llama.context_length": trained}))
    assert load.spec.context_tokens == chosen


async def test_the_default_context_is_halved_until_it_fits(loader, spec) -> None:
    big = {"llama.context_length": 131072}
    for tokens, least in ((8192, 8192), (8191, 4096), (4095, 2048)):
        load = await loader(gpu(FIXED + 4 * A_TOKEN * tokens)).prepare("e0", spec(big, slots=4))
        assert load.spec.context_tokens == least
    assert "would not fit" in await reason(loader(gpu(FIXED)).prepare("e0", spec(big, slots=4)))


async def test_a_given_context_stands(loader, spec) -> None:
    load = await loader(gpu(8 * GIB)).prepare("e0", spec(context_tokens=100_000))
    assert load.spec.context_tokens == 100_000


# -- room


async def test_a_load_that_does_not_fit_is_refused_with_the_figures(loader, spec) -> None:
    one = loader(gpu(GIB), reserve=lambda _: GIB // 2)
    with pytest.raises(Unfit) as caught:
        await one.prepare("e0", spec(context_tokens=4 << 20))
    told = caught.value.reason
    assert "needs 1.06 GiB (weights 0.00 GiB + KV cache 1.00 GiB + compute 0.06 GiB)" in told
    assert "cuda:0: 1.00 GiB free - 0.50 GiB reserved (reserved_memory_bytes) = 0.50 GiB to use" in told
    assert "smaller context_tokens" in told
    assert caught.value.load is not None, "the plan is there to be shown"


async def test_the_cpu_is_warned_about_unless_told_to_refuse(loader, spec, caplog) -> None:
    tight = gpu(MIB, "cpu:0")
    await loader(tight).prepare("e0", spec(devices=("cpu:0",)))
    assert [record for record in caplog.records if getattr(record, "event", "") == "memory_short"]
    await reason(loader(tight, check="refuse").prepare("e0", spec(devices=("cpu:0",))))


async def test_checks_can_be_weakened(loader, spec) -> None:
    for check in ("warn", "off"):
        await loader(gpu(MIB), check=check).prepare("e0", spec())
    partly = spec({"llama.block_count": 40}, flags={"n-gpu-layers": "10"})
    await loader(gpu(MIB)).prepare("e0", partly)
    whole = spec({"llama.block_count": 40}, flags={"n-gpu-layers": "99"})
    await reason(loader(gpu(MIB)).prepare("e0", whole))


async def test_a_device_that_does_not_tell_refuses_nobody(loader, spec) -> None:
    await loader().prepare("e0", spec(context_tokens=100 << 20))


async def test_a_device_out_of_use_gets_no_engine(loader, spec) -> None:
    told = await reason(loader(gpu(8 * GIB, reason="it fell off the bus")).prepare("e0", spec()))
    assert told == "not started: cuda:0: it fell off the bus"


async def test_two_loads_at_once_do_not_get_the_same_memory(loader, spec) -> None:
    one, half = loader(gpu(2 * GIB)), spec(context_tokens=4 << 20)
    await one.prepare("e0", half)
    await one.prepare("e0", half)  # the same engine tries again: its own claim does not stand in its way
    assert "1.06 GiB for engines that are being loaded" in await reason(one.prepare("e1", half))
    one.release("e0")
    one.release("e0")
    await one.prepare("e1", half)


async def test_two_at_the_same_moment_are_told_apart(loader, spec) -> None:
    one, half = loader(gpu(2 * GIB)), spec(context_tokens=4 << 20)
    found = await asyncio.gather(*(one.prepare(f"e{number}", half) for number in range(3)), return_exceptions=True)
    assert sum(isinstance(each, Unfit) for each in found) == 2


def test_room_adds_devices_and_takes_off_claims_by_share() -> None:
    seen = [gpu(4 * GIB), gpu(6 * GIB, "cuda:1"), gpu(0, "cuda:2").model_copy(update={"memory_total_bytes": 0})]
    claims = [Claim(("cuda:0", "cuda:2"), GIB), Claim(("cuda:1",), GIB), Claim(("cpu:0",), GIB)]
    both = room(("cuda:0", "cuda:1"), seen, claims, lambda _: GIB // 4)
    assert both == Room(("cuda:0", "cuda:1"), 10 * GIB, GIB // 2, GIB + GIB // 2)
    assert both.usable_bytes == 8 * GIB
    assert room(("cuda:2",), seen, []) is None
    assert room(("cuda:9",), seen, []) is None
    assert Room(("a",), 1, 2, 3).usable_bytes == 0


# -- what was taken


async def test_a_measured_load_corrects_later_plans_of_the_same_serving(loader, spec) -> None:
    devices = Devices(gpu(8 * GIB))
    one = loader()
    one._devices = devices
    load = await one.prepare("e0", spec(context_tokens=4096))
    metrics = DeviceMetrics(processes=(ProcessMemory(pid=7, memory_bytes=load.needed_bytes * 2),))
    devices.current = (gpu(8 * GIB, metrics=metrics),)
    assert await one.measured(load, 8) is None
    assert await one.measured(load, 7) == load.needed_bytes * 2
    again = await loader(*devices.current).prepare("e0", spec(context_tokens=4096))
    assert again.correction == Correction(1.5)
    assert again.needed_bytes == int(load.needed_bytes * 1.5)
    assert "earlier loads took 1.50 times their plan" in again.text()
    assert (await loader(*devices.current).prepare("e0", spec(context_tokens=2048))).correction == Correction()


def test_on_the_cpu_all_that_is_resident_counts() -> None:
    mine = taken_bytes(os.getpid(), ("cpu:0",), ())
    assert mine is not None
    assert mine > 10 * MIB
    assert taken_bytes(2**22 + 1, ("cpu:0",), ()) is None


def test_a_correction_that_was_damaged_is_none(tmp_path) -> None:
    kept = Corrections(tmp_path)
    kept.remember("k", Correction(1.25))
    assert Corrections(tmp_path).of("k") == Correction(1.25)
    (file,) = tmp_path.iterdir()
    for damage in (b"", b"{", b"[]", b'{"ratio": "x"}', b'{"ratio": 900}'):
        file.write_bytes(damage)
        assert kept.of("k") == Correction()
