"""Where models are kept, and how much of the disk they may have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from schemas.units import size

Mode = Literal["ro", "rw", "rw-delete"]
"""`ro`: nothing is ever written or deleted · `rw`: files are added, none is deleted · `rw-delete`: both."""

Bytes = Annotated[int, BeforeValidator(size), Field(ge=0)]


class SharedRoot(BaseModel):
    """Another folder with models in the store's layout: a volume that several nodes mount."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    mode: Mode = "ro"


class StoreSettings(BaseModel):
    """The group `store`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    models_root_dir: Path | None = Field(default=None, validation_alias=AliasChoices("models_root_dir", "models_dir"))
    """Where models are kept. Unset: `models` in the node's state folder."""
    models_root_mode: Mode = "rw-delete"
    """What may be done there: `ro` (serve only), `rw` (add, never delete), `rw-delete`."""
    shared_roots: tuple[SharedRoot, ...] = Field(default=(), max_length=16)
    """Further folders whose models are served too. New models go to `models_root_dir` only."""
    reserved_disk_bytes: Bytes = Field(
        default=8 << 30, validation_alias=AliasChoices("reserved_disk_bytes", "reserved_disk")
    )
    """Of the file system, kept free of models. `8G` is understood."""
    budget_bytes: Bytes | None = None
    """What all models together may have; unset: what the disk has."""
    high_water_percent: float | None = Field(default=None, gt=0, le=100)
    """Above this share of the budget (without one: of the file system) the models that were used least recently go.
    Unset: none ever goes by itself. Pinned ones, those in use, those that a record wants and `local://` stay."""
    low_water_percent: float = Field(default=80.0, ge=0, le=100)
    """They go until this share is reached."""
    partial_keep_s: float = Field(default=7 * 86400.0, ge=0)
    """A download that was not finished is kept so long, to be gone on with."""
    verify_bytes_per_s: int | None = Field(default=None, ge=1 << 20)
    """How fast files are read to be verified; unset: as fast as the disk gives them."""
    use_hub_cache: bool = True
    """Take files from this user's Hugging Face cache (`HF_HUB_CACHE`, `HF_HOME`) after their checksum was compared."""

    fit_check: bool = True
    """Do not fetch a model whose weights are more than all of this node's GPUs could ever give one engine; what is
    counted as `vram_insufficient`. Off: for models that are split over several nodes."""

    @model_validator(mode="after")
    def _marks_are_in_order(self) -> Self:
        if self.high_water_percent is not None and self.low_water_percent > self.high_water_percent:
            raise ValueError("low_water_percent is above high_water_percent")
        return self
