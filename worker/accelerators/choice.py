"""Which kinds of device a node may use."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict

_DEVICE: Final = re.compile(r"[a-z][a-z0-9_-]*:\d+(?:\.\d+)*")


def _words(value: Any) -> Any:
    """A list may be given as one text with commas, as an environment variable must."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_words)]


def device_names(value: Any) -> Any:
    """Names of devices as a list, or as one text with commas; `auto` is none in particular. Raises `ValueError`."""
    names = _words(value)
    if not isinstance(names, list | tuple):
        return names
    found = cast("list[Any]", list(names))  # pyright: ignore[reportUnknownArgumentType]
    if found == ["auto"]:
        return ()
    for name in found:
        if not isinstance(name, str) or _DEVICE.fullmatch(name) is None:
            raise ValueError(f"{str(name)[:40]!r} is no device: write auto, or names as puna doctor tells them, cuda:0")
    return found


class AcceleratorSettings(BaseModel):
    """By backend: `cpu, cuda, rocm, metal, sycl, vulkan`, or the name of an installed extension."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: Names = ()
    """Only these; empty: all."""
    block: Names = ()
    """Never these; their drivers are not touched, and they are hidden from engines."""

    def permits(self, backend: str) -> bool:
        """Whether a backend may be used. What is blocked is blocked, allowed or not."""
        return backend not in self.block and (not self.allow or backend in self.allow)
