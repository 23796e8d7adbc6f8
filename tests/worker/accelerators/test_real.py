"""The real driver of this machine, where there is one."""

from __future__ import annotations

import pynvml
import pytest

from worker.accelerators.cuda import Cuda
from worker.accelerators.nvidia_smi import NvidiaSmi
from worker.accelerators.nvml import Nvml


def _has_nvidia() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return pynvml.nvmlDeviceGetCount() > 0


pytestmark = pytest.mark.skipif(not _has_nvidia(), reason="no NVIDIA GPU on this machine")


def test_the_real_driver_tells_its_devices() -> None:
    devices = Nvml(pynvml).devices()
    assert devices
    for device in devices:
        assert (device.uuid or "").startswith(("GPU-", "MIG-"))
        assert 0 <= device.memory_free_bytes <= device.memory_total_bytes


def test_nvidia_smi_agrees_with_nvml() -> None:
    library, program = Nvml(pynvml).devices() or [], NvidiaSmi().devices() or []
    whole = [device for device in library if device.parent is None and device.reason is None]
    assert {device.uuid for device in whole} <= {device.uuid for device in program}


def test_engines_are_pinned_by_the_real_ids() -> None:
    cuda = Cuda()
    assert cuda.discover()
    (first, *_) = cuda.sample()
    assert cuda.environment([first.device])["CUDA_VISIBLE_DEVICES"] == first.uuid
