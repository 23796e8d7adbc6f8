"""Which kinds of device a node may use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _words(value: Any) -> Any:
    """A list may be given as one text with commas, as an environment variable must."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_words)]


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
