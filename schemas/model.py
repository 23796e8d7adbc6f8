"""What should be where (`puna_models`), and what is (`puna_copies`)."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from schemas.errors import InvalidName, InvalidRequest
from schemas.node import Wire
from schemas.selector import Selector, Strict
from schemas.source import parse_source
from schemas.subjects import check_model_id

CopyState = Literal["Pending", "Downloading", "Verifying", "Ready", "Updating", "Failed", "Deleting"]
COPY_MOVES: Final[dict[CopyState, tuple[CopyState, ...]]] = {
    "Pending": ("Downloading", "Verifying", "Ready", "Failed", "Deleting"),
    "Downloading": ("Pending", "Verifying", "Failed", "Deleting"),
    "Verifying": ("Downloading", "Ready", "Failed", "Deleting"),
    "Ready": ("Updating", "Verifying", "Failed", "Deleting"),
    "Updating": ("Ready", "Failed", "Deleting"),
    "Failed": ("Pending", "Downloading", "Verifying", "Updating", "Ready", "Deleting"),
    "Deleting": ("Failed", "Pending"),
}
"""Legal moves of a copy. `Updating` is `Ready` with a newer revision on its way beside it: the old one serves on."""

_CHECKSUM: Final = re.compile(r"(?:sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})")
SECRET_REFERENCE: Final = re.compile(
    r"env:[A-Za-z_][A-Za-z0-9_]{0,127}|file:/[^\0]{1,1023}|secret:[A-Za-z0-9][\w.-]{0,63}(?:#[\w.-]{1,64})?"
)
SOURCE_PARAMETERS: Final = ("auth", "region", "endpoint", "secretKey", "profile", "path_style")


def _is_source(text: str) -> str:
    try:
        parse_source(text)
    except InvalidRequest as error:
        raise ValueError(error.message) from error
    return text


def _is_model(text: str) -> str:
    try:
        return check_model_id(text)
    except InvalidName as error:
        raise ValueError(error.message) from error


def _is_checksum(text: str) -> str:
    if not _CHECKSUM.fullmatch(text):
        raise ValueError("write sha256:<64 hex digits> or md5:<32 hex digits>")
    return text


def _is_reference(text: str) -> str:
    if not SECRET_REFERENCE.fullmatch(text):
        raise ValueError("name where the node finds it: env:NAME, file:/path or secret:NAME; never the secret itself")
    return text


SourceText = Annotated[str, AfterValidator(_is_source)]
ModelId = Annotated[str, AfterValidator(_is_model)]
Checksum = Annotated[str, AfterValidator(_is_checksum)]
SecretRef = Annotated[str, AfterValidator(_is_reference)]
Pattern = Annotated[str, Field(min_length=1, max_length=255)]


class Profile(Strict):
    """How the model is to be served. What is not set is the node's own choice."""

    context_tokens: int | None = Field(default=None, ge=64)
    slots: int | None = Field(default=None, ge=1, le=256)
    flags: dict[str, str | bool | list[str]] = Field(default_factory=dict[str, str | bool | list[str]], max_length=128)
    """llama-server's long flags."""
    pinned: bool = False
    preload: bool | None = None
    idle_ttl_s: float | None = Field(default=None, gt=0)
    cpu_fallback: bool = False
    devices_per_engine: int | None = Field(default=None, ge=1, le=64)


class Variant(Strict):
    """Which files a kind of node gets: the first variant that fits it is taken."""

    shape: str | None = Field(default=None, max_length=64)
    """`GPU.<model>.<count>`, as the node computes it: `GPU.A100.4`."""
    memory_at_least_bytes: int | None = Field(default=None, ge=0)
    """Of the largest device."""
    selector: Selector | None = None
    quant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,40}$")
    files: tuple[Pattern, ...] = Field(default=(), max_length=64)
    profile: Profile | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.quant is None and not self.files and self.profile is None:
            raise ValueError("a variant needs quant, files or profile")
        return self


class Wanted(Strict):
    """What a model is made of: common to a download task and to a record of desired state."""

    model: ModelId
    source: SourceText
    revision: str | None = Field(default=None, max_length=200)
    files: tuple[Pattern, ...] = Field(default=(), max_length=64)
    """Names or patterns (`*Q4_K_M*.gguf`) within the source; empty: chosen by rule."""
    checksums: dict[Pattern, Checksum] = Field(default_factory=dict[str, str], max_length=256)
    """By file name; `*` for a source of one file."""
    token_ref: SecretRef | None = None
    """Where the node finds the credential: `env:NAME`, `file:/path`, `secret:NAME`."""
    parameters: dict[str, str] = Field(default_factory=dict[str, str], max_length=16)
    """For object stores: `auth`, `region`, `endpoint`, `profile`, `path_style`; for secrets `secretKey`."""
    policy: Literal["reuse_if_exists", "always"] = "reuse_if_exists"
    variants: tuple[Variant, ...] = Field(default=(), max_length=32)
    retain: bool = False
    """A delete takes the model away and leaves its files."""
    skip_parsing: bool = False
    """The file's header is not read: what it can do is not known then."""
    profile: Profile = Profile()

    @field_validator("parameters")
    @classmethod
    def _no_secret(cls, given: dict[str, str]) -> dict[str, str]:
        if "token" in given:
            raise ValueError("a secret must not be written here: put it into a file or variable and name it: token_ref")
        unknown = sorted(given.keys() - set(SOURCE_PARAMETERS))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(SOURCE_PARAMETERS)}")
        return given


class Placement(Strict):
    """Which nodes hold the model."""

    selector: Selector = Selector()
    copies: Literal["all"] | Annotated[int, Field(ge=0, le=10_000)] = 1


class ModelRecord(Wanted):
    """The value under `<model>` in the models bucket: desired state.

    `deleting` makes it a tombstone: every node takes its copy away, and the record goes when none is left.
    """

    placement: Placement = Placement()
    deleting: bool = False
    generation: int = Field(default=1, ge=1)
    """Counts the changes; a copy says which it has seen."""
    restored: bool = False
    """A node has put it back from its disk after the bucket was lost: a newer generation of another node's disk takes
    its place, as nothing takes the place of what somebody has written since."""


class CopyProgress(Wire):
    """How far a transfer is. Bytes are of all files together; those that were there already count as done."""

    phase: str = ""
    bytes_total: int | None = None
    bytes_done: int = 0
    files_total: int | None = None
    files_done: int = 0
    speed_bytes_per_s: float | None = None
    eta_s: float | None = None
    updated: float | None = None
    """Unix seconds at which this was so, by the node's clock, for people."""


class CopyRecord(Wire):
    """The value under `<model>.<node>` in the copies bucket. `since`: Unix seconds by the node's clock, for people."""

    model: str
    node: str
    state: CopyState
    since: float
    source: str | None = None
    revision: str | None = None
    generation: int | None = None
    reason: str | None = None
    error: str | None = None
    next_retry_at: float | None = None
    progress: CopyProgress = CopyProgress()
    size_bytes: int | None = None
    attempt: int = 0
    config: dict[str, str | int | bool | list[str] | None] = Field(default_factory=dict)
    """What the files say of the model: architecture, parameters, quantisation, context…"""
