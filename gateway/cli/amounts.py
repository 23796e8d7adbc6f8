"""Amounts as people read them: bytes, times, how far something is."""

from __future__ import annotations

from typing import Final

from schemas.model import CopyProgress

BAR_CELLS: Final = 20
_PHASES: Final = {"resolving": "asks the source what there is"}
_FULL: Final = "█"
_EMPTY: Final = "░"


def bytes_text(count: float) -> str:
    """`98.1 MB`; two units are never mixed, so that columns can be compared."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def count_text(count: int) -> str:
    """`7.2B` parameters."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def seconds_text(seconds: float) -> str:
    """`42s`, `3m`, `2h`, `5d`: the largest unit that fits."""
    whole = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= length:
            return f"{whole // length}{unit}"
    return f"{whole}s"


def left_text(seconds: float) -> str:
    """`1m05s`: how long still, finer than an age needs to be."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def bar(part: float, cells: int = BAR_CELLS) -> str:
    """A bar that is `part` (0 to 1) full."""
    full = min(int(max(part, 0.0) * cells), cells)
    return _FULL * full + _EMPTY * (cells - full)


def done_of(progress: CopyProgress) -> float | None:
    """How far a transfer is, 0 to 1; None while nobody knows how much it is."""
    if not progress.bytes_total:
        return None
    return min(progress.bytes_done / progress.bytes_total, 1.0)


def progress_text(progress: CopyProgress, *, cells: int = 0) -> str:
    """`41 %, 40.2 MB of 98.1 MB, 12.1 MB/s, 5s left`, with a bar before it if `cells`."""
    part = done_of(progress)
    if part is None:
        known = [bytes_text(progress.bytes_done)] if progress.bytes_done else []
        shown = [_PHASES.get(progress.phase, progress.phase) or "beginning", *known]
    else:
        drawn = f"{bar(part, cells)} " if cells else ""
        amount = f"{bytes_text(progress.bytes_done)} of {bytes_text(progress.bytes_total or 0)}"
        shown = [f"{drawn}{int(part * 100)} %", amount]
    if (progress.files_total or 0) > 1:
        shown.append(f"file {min((progress.files_done or 0) + 1, progress.files_total or 0)} of {progress.files_total}")
    if progress.speed_bytes_per_s:
        shown.append(f"{bytes_text(progress.speed_bytes_per_s)}/s")
    if progress.eta_s is not None and part is not None and part < 1:
        shown.append(f"{left_text(progress.eta_s)} left")
    return ", ".join(shown)
