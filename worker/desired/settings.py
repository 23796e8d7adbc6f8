"""How this node follows desired state."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DesiredSettings(BaseModel):
    """The group `desired`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_gone_grace_s: float = Field(default=300.0, ge=0)
    """A node that is away, or drains, for less than this keeps its share of the copies; then others fetch them."""
    resync_s: float = Field(default=300.0, ge=1)
    """How often the records are compared with the disk, whatever was heard."""
    tombstone_s: float = Field(default=60.0, ge=0)
    """How long the record of a deleted model stays at least, so that every node sees it."""
    kv_sync_interval_s: float = Field(default=60.0, ge=1)
    """How often what is told of this node's copies is compared with the bucket, and put back where it is missing."""
