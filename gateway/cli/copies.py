"""What a copy of a model is doing, in words."""

from __future__ import annotations

from gateway.cli.amounts import left_text, progress_text
from schemas.model import CopyRecord


def copy_text(copy: CopyRecord, now: float, *, cells: int = 0) -> str:
    """Its state with the reason, how far it is (with a bar of so many cells), and when it is tried again."""
    if copy.state in ("Downloading", "Verifying", "Updating"):
        return f"{copy.state.lower()} {progress_text(copy.progress, cells=cells)}"
    told = [copy.reason] if copy.reason else []
    if copy.next_retry_at is not None:
        wait_s = copy.next_retry_at - now
        told.append(f"next try in {left_text(wait_s)}" if wait_s > 0 else "next try now")
    return f"{copy.state.lower()}: {', '.join(told)}" if told else copy.state.lower()
