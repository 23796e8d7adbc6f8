"""What a transfer works on, and what it tells at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.sources import Algorithm, Digest


@dataclass(frozen=True, slots=True)
class Part:
    """One file on its way: its bytes so far, and the journal of which they are. Their folder is there."""

    data: Path
    journal: Path


@dataclass(frozen=True, slots=True)
class Digests:
    """A file that is whole and on the disk."""

    size_bytes: int
    sha256: str
    md5: str | None = None
    git_sha1: str | None = None

    def of(self, algorithm: Algorithm) -> Digest | None:
        """The one of that kind, if it was computed. SHA-256 always is."""
        text = {"sha256": self.sha256, "md5": self.md5, "git-sha1": self.git_sha1}[algorithm]
        return Digest(algorithm, text) if text else None
