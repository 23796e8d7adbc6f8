"""What a view is: the note that makes a folder of links a copy of a model, and the copy as the worker sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from schemas.model import Profile
from schemas.selector import Strict
from worker.sources import Role

FORMAT: Final = 1
Config = Mapping[str, str | int | bool | list[str] | None]


class HeldFile(Strict):
    """One file. `path` is within the view, or absolute where files are served in place."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    role: Role = "other"
    modified_ns: int | None = None
    """Of a file that is served in place: that it is still the one that was looked at."""


class Manifest(Strict):
    """The content of `manifest.json`. Times are Unix seconds by this node's clock, for people and for the order of use.

    `serial` counts a model's installs: of several whole views the one with the highest counts.
    """

    format: Literal[1] = FORMAT
    model: str
    source: str
    revision: str
    serial: int = Field(ge=1)
    main: str
    files: tuple[HeldFile, ...]
    in_place: bool = False
    installed_at: float
    generation: int | None = None
    want: str = ""
    """Fingerprint of what was asked for."""
    listing: str = ""
    """Fingerprint of what the source had."""
    profile: Profile = Profile()
    retain: bool = False
    config: dict[str, str | int | bool | list[str] | None] = Field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def blobs(self) -> frozenset[str]:
        """The contents that it needs."""
        return frozenset(file.sha256 for file in self.files if file.sha256 is not None and not self.in_place)

    def of(self, role: Role) -> HeldFile | None:
        """The first file of that role."""
        return next((file for file in self.files if file.role == role), None)


class BadManifest(ValueError):
    """A note that cannot be understood: what it refers to must be kept."""


def read_manifest(data: bytes) -> Manifest:
    """Raises `BadManifest`."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadManifest(f"{'.'.join(str(part) for part in first['loc'])[:80]}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class Copy:
    """A model's files on this node. `broken`: files whose content was found to be wrong; it cannot be served then.

    `removable`: whether this node may delete it.
    """

    model: str
    token: str
    manifest: Manifest
    folder: Path
    used_at: float
    broken: tuple[str, ...] = ()
    removable: bool = True

    @property
    def revision(self) -> str:
        """As its source told it."""
        return self.manifest.revision

    @property
    def main(self) -> Path:
        """The file that an engine loads."""
        return self.path(self.manifest.main)

    def path(self, file: str) -> Path:
        """A file of it."""
        return self.folder / file

    def role(self, role: Role) -> Path | None:
        """The first file of that role."""
        found = self.manifest.of(role)
        return self.path(found.path) if found else None
