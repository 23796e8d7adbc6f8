"""What a loaded engine took of its devices' memory, and what that says about later loads, kept over restarts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import orjson
import psutil

from schemas.node import Device
from worker.memory import Correction

log = logging.getLogger(__name__)


def taken_bytes(pid: int, names: tuple[str, ...], devices: Iterable[Device]) -> int | None:
    """Memory of the process on the devices `names`; None where it cannot be told.

    On the CPU all that is resident, mapped model files included. On GPUs what the driver counts for it, which may know
    it under another pid (in a container): then nothing is told.
    """
    if all(name.startswith("cpu") for name in names):
        return _resident_bytes(pid)
    held = [
        process.memory_bytes
        for device in devices
        if device.device in names
        for process in device.metrics.processes or ()
        if process.pid == pid
    ]
    return sum(held) if held else None


def _resident_bytes(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


class Corrections:
    """The `Correction` of each model and way to serve it, a file each in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, key: str) -> Correction:
        """What is known, or that nothing is."""
        try:
            ratio = orjson.loads(self._path(key).read_bytes())["ratio"]
        except (OSError, ValueError, KeyError, TypeError):
            return Correction()
        return Correction(ratio=float(ratio)) if isinstance(ratio, int | float) and 0.5 <= ratio <= 3 else Correction()

    def remember(self, key: str, correction: Correction) -> None:
        """Keep it. A disk that does not take it costs a less exact plan next time, and is told."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path(key).with_suffix(".new")
            fresh.write_bytes(orjson.dumps({"ratio": round(correction.ratio, 4)}))
            fresh.replace(self._path(key))
        except OSError as error:
            log.warning("correction_unkept", extra={"event": "correction_unkept", "reason": error.strerror})

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.memory"
