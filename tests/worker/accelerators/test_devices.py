"""The devices over time: one that is gone is told of, and a driver that hangs holds up nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import pytest

from schemas.node import Device
from worker.accelerators.presence import GONE, KEPT_S, Presence
from worker.devices import STUCK, Devices

LIMIT_S = 0.2


def device(name: str) -> Device:
    backend = name.partition(":")[0]
    return Device(device=name, backend=backend, name=name, memory_total_bytes=8, memory_free_bytes=8)


class Some:
    """An accelerator that waits when it is told to."""

    def __init__(self, backend: str, *names: str) -> None:
        self.backend = backend
        self.names = list(names)
        self.go = threading.Event()
        self.go.set()
        self.samples = 0
        self.error: Exception | None = None

    def discover(self) -> bool:
        return True

    def sample(self) -> list[Device]:
        self.samples += 1
        self.go.wait(30)
        if self.error is not None:
            raise self.error
        return [device(name) for name in self.names]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        return {}


def told(devices: Devices) -> dict[str, str | None]:
    return {one.device: one.reason for one in devices.current}


async def test_a_driver_that_hangs_marks_its_own_devices_and_is_not_asked_again() -> None:
    gpus, cpu = Some("cuda", "cuda:0"), Some("cpu", "cpu:0")
    devices = Devices([gpus, cpu], limit_s=LIMIT_S)
    await devices.read()
    gpus.go.clear()
    await devices.read()
    assert told(devices) == {"cuda:0": STUCK, "cpu:0": None}
    await devices.read()
    assert (gpus.samples, cpu.samples) == (2, 3)
    gpus.go.set()
    while told(devices)["cuda:0"] is not None:
        await devices.read()
        await asyncio.sleep(0)
    assert told(devices) == {"cuda:0": None, "cpu:0": None}


async def test_a_driver_that_hangs_from_the_start_does_not_keep_the_node_from_starting() -> None:
    gpus, cpu = Some("cuda", "cuda:0"), Some("cpu", "cpu:0")
    gpus.go.clear()
    devices = Devices([gpus, cpu], limit_s=LIMIT_S)
    async with asyncio.timeout(5):
        await devices.read()
    assert told(devices) == {"cpu:0": None}
    gpus.go.set()


async def test_the_event_loop_runs_on_while_a_driver_takes_its_time() -> None:
    gpus = Some("cuda", "cuda:0")
    gpus.go.clear()
    devices = Devices([gpus], limit_s=30)
    reading = asyncio.create_task(devices.read())
    async with asyncio.timeout(1):
        while not gpus.samples:
            await asyncio.sleep(0)
    gpus.go.set()
    await reading
    assert told(devices) == {"cuda:0": None}


async def test_an_accelerator_that_raises_has_its_devices_marked_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpus, cpu = Some("cuda", "cuda:0"), Some("cpu", "cpu:0")
    devices = Devices([gpus, cpu], limit_s=LIMIT_S)
    await devices.read()
    gpus.error = ValueError("unheard of")
    await devices.read()
    await devices.read()
    assert told(devices) == {"cuda:0": GONE, "cpu:0": None}
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("devices_unreadable") == 1
    gpus.error = None
    await devices.read()
    assert told(devices) == {"cuda:0": None, "cpu:0": None}


def test_a_device_that_is_gone_is_told_of_with_a_reason_for_a_time() -> None:
    presence = Presence()
    assert len(presence.update([device("cuda:0"), device("cuda:1")], 0)) == 2
    whole, lost = presence.update([device("cuda:0")], 10)
    assert (whole.reason, lost.device, lost.reason, lost.memory_free_bytes) == (None, "cuda:1", GONE, 0)
    assert len(presence.update([device("cuda:0")], 10 + KEPT_S)) == 2
    assert len(presence.update([device("cuda:0")], 11 + KEPT_S)) == 1


def test_a_device_that_comes_back_is_whole_again() -> None:
    presence = Presence()
    presence.update([device("cuda:0")], 0)
    presence.update([], 1)
    (back,) = presence.update([device("cuda:0")], 2)
    assert (back.reason, back.memory_free_bytes) == (None, 8)
    (lost,) = presence.update([], 2 + KEPT_S)
    assert lost.reason == GONE
