"""The engine's own list of devices: what it can compute with, under its own names.

The engine is asked with the devices in the order of their PCI bus, so that its `CUDA1` is NVML's second GPU. Listing
CUDA or ROCm devices makes a context on each, which costs memory there and fails when a GPU is full: with those in it,
the list is made once. Others are asked again now and then, for how much is free.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from worker.accelerators.figures import MIB
from worker.accelerators.tool import Source, Tool

TIMEOUT_S: Final = 30.0
"""A driver's first contact with its GPU can take this long."""
EVERY_S: Final = 30.0
KEPT_S: Final = 300.0
"""So long the last list serves while the engine gives no new one."""
_HEAD: Final = "Available devices:"
_LINE: Final = re.compile(
    r"^\s+([A-Za-z]+)(\d{0,3}): (.{0,300}) \((\d{1,9}) MiB, (\d{1,9}) MiB free\)\s*$", re.MULTILINE
)
_BACKENDS: Final = {"mtl": "metal", "hip": "rocm"}
_NO_DEVICES: Final = frozenset({"cpu", "blas", "rpc"})
_COSTLY: Final = frozenset({"cuda", "rocm"})


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of the list."""

    backend: str
    index: int
    name: str
    total_bytes: int
    free_bytes: int

    @property
    def device(self) -> str:
        """`vulkan:0`."""
        return f"{self.backend}:{self.index}"


def entries(output: str) -> tuple[Listed, ...]:
    """The devices of an engine's answer, GPUs only."""
    found = [_entry(*hit) for hit in _LINE.findall(output.partition(_HEAD)[2])]
    return tuple(each for each in found if each.backend not in _NO_DEVICES)


def _entry(name: str, number: str, description: str, total: str, free: str) -> Listed:
    backend = _BACKENDS.get(name.lower(), name.lower())
    shown = "".join(character for character in description if character.isprintable())
    return Listed(backend, int(number or 0), shown.strip(), int(total) * MIB, int(free) * MIB)


class EngineList:
    """One engine program's list. `ask` gives a source for a given environment."""

    def __init__(
        self,
        argv: Sequence[str],
        ask: Callable[[Mapping[str, str], float], Source] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._argv = (*argv, "--list-devices")
        self._ask = ask or self._tool
        self._clock = clock
        self._source = self._ask({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, EVERY_S)
        self._last: tuple[Listed, ...] = ()
        self._known_at: float | None = None

    @property
    def answered(self) -> bool:
        """Whether the engine ever gave a list, an empty one included."""
        return self._known_at is not None

    def read(self) -> tuple[Listed, ...]:
        """The devices; those of the last answer while there is no new one, for a time."""
        if self._known_at is not None and any(each.backend in _COSTLY for each in self._last):
            return self._last
        output = self._source.read()
        now = self._clock()
        if output is not None and _HEAD in output:
            self._last, self._known_at = entries(output), now
        elif self._known_at is None or now - self._known_at > KEPT_S:
            self._last = ()
        return self._last

    def with_environment(self, environment: Mapping[str, str]) -> tuple[Listed, ...] | None:
        """What the engine lists under another environment, asked once. `None`: it gave no answer."""
        output = self._ask(environment, 0.0).read()
        return entries(output) if output is not None and _HEAD in output else None

    def _tool(self, environment: Mapping[str, str], every_s: float) -> Tool:
        return Tool(self._argv, every_s=every_s, timeout_s=TIMEOUT_S, environment=environment)
