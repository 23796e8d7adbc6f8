"""How this node downloads. Names and defaults are those that users of the references know."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[int, Field(ge=1024)]


class DownloadSettings(BaseModel):
    """The group `downloads`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_download_worker: int = Field(default=5, ge=1, le=64)
    """Models that may be on their way at once."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Files at once, of all models together."""
    multipart_concurrency: int = Field(default=4, ge=1, le=32)
    """Connections at once for one file above the threshold."""
    multipart_threshold_bytes: int = Field(default=200_000_000, ge=1 << 20)
    """A file of at least this size comes over several connections."""
    piece_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """The most that one connection asks for at a time, of a file above the threshold. Where requests cost no time it is
    less, down to 4 MiB."""
    buffer_bytes: int = Field(default=16 << 20, ge=4 << 20)
    """Of all downloads together: what has been received and is not yet written. A file has a share of it, which is at
    most a two-hundredth of its own size."""
    download_retry: int = Field(default=3, ge=0, le=100)
    """Tries after the first, in a row and without progress; of a hub see `hf_max_retries`."""
    download_timeout_s: float | None = Field(default=None, gt=0)
    """For one model, all tries and waits together: then it is `Failed` with `download_timeout`. Unset: no limit, for a
    download that goes on is left to go on; `stall_timeout_s` ends those that do not."""
    progress_interval_s: float = Field(default=2.0, ge=0.1, le=300)
    """How often a copy's record, and a task's, tells how far it is. A step is told at once."""
    retry_interval_s: float = Field(default=1.0, ge=0, le=300)
    """The mean of the first wait is half of this; each wait after it may be twice as long, up to 300 s."""
    hf_max_workers: int = Field(default=4, ge=1, le=64)
    """Files at once from a hub."""
    hf_max_retries: int = Field(default=10, ge=0, le=100)
    hf_retry_interval_s: float = Field(default=15.0, ge=0, le=300)
    bytes_per_s: Rate | None = None
    """Of all downloads together; unset: no limit."""
    per_source_bytes_per_s: dict[str, Rate] = Field(default_factory=dict[str, int])
    """By scheme (`hf`, `s3`, `https`…) or host name: of all downloads from there together."""
    connect_timeout_s: float = Field(default=15.0, gt=0)
    read_timeout_s: float = Field(default=30.0, gt=0)
    """Until a server has answered with its headers."""
    stall_timeout_s: float = Field(default=30.0, gt=0)
    """A connection that brought less than 1 kB/s for this long is given up for another."""
    startup_stagger_max_s: float = Field(default=30.0, ge=0)
    """After a start a node waits up to this long before its first download; how long follows from its name."""
