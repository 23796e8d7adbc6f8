"""How big a model's files are, and how long its last load took: the only guide to how far a load is."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


def model_bytes(path: Path) -> int:
    """Size of a model, with all shards of a split one. Raises `OSError` if `path` is not there."""
    first = path.stat().st_size
    if (hit := _SHARD.fullmatch(path.name)) is None:
        return first
    shards = path.parent.glob(f"{glob_escape(hit[1])}-[0-9][0-9][0-9][0-9][0-9]-of-{hit[2]}.gguf")
    return sum(shard.stat().st_size for shard in shards)


def glob_escape(text: str) -> str:
    """Text that matches itself in a glob."""
    return re.sub(r"([*?\[])", r"[\1]", text)


class LoadTimes:
    """Seconds of each model's last load, kept in `folder` over restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def last_s(self, model: Path) -> float | None:
        """Seconds of the last load, if there was one."""
        try:
            return float(self._path(model).read_text())
        except (OSError, ValueError):
            return None

    def remember(self, model: Path, seconds: float) -> None:
        """Note a load that went well."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path(model).write_text(f"{seconds:.3f}")

    def _path(self, model: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(model).encode()).hexdigest()[:24]}.load"
