"""How this node shares files with others."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[int, Field(ge=1024)]


class PeerSettings(BaseModel):
    """The group `peers`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    """Take files from other nodes and offer them; no: each file comes from its source."""
    upload_bytes_per_s: Rate | None = None
    """Of all that is sent to other nodes together; unset: no limit."""
    max_uploads: int = Field(default=8, ge=1, le=256)
    """Chunks that are sent at once; whoever asks for one more goes to another node."""
    max_downloads: int = Field(default=8, ge=1, le=64)
    """Chunks (1 MiB) that are received at once, of all files together."""
    smallest_bytes: int = Field(default=1 << 20, ge=1)
    """A smaller file comes from its source: asking around would take longer."""
    answer_wait_s: float = Field(default=0.3, gt=0, le=10)
    """How long to wait for answers of other nodes before the source is asked."""
    stall_timeout_s: float = Field(default=5.0, gt=0)
    """A node that sends nothing for so long is left alone for a while."""
    lease_s: float = Field(default=10.0, ge=2, le=600)
    """Who asks a source says so for so long at a time; after one that died or froze, another follows then."""
    patience_s: float = Field(default=60.0, gt=0)
    """With no byte from any node for so long, the source is asked although another node is at it."""
