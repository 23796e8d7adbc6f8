"""Questions after the bytes of a file among workers, and the answers: `puna.peer.<key>`.

The key says which content is meant: `sha256-<hex>` where that is known, else `source-<hex>`, a digest of what a source
tells of the file. Whoever asks is answered by each node that has some of it, directly to the reply subject. Chunks are
counted from 0; each has `CHUNK_BYTES`, the last one what is left. A run of chunks is told as its first and the one
after its last.

Which files a model has on a node is asked of that node alone: the verb `copy`, as the others of its control.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field

from schemas.hubfiles import Role
from schemas.node import Wire

CHUNK_BYTES: Final = 1 << 20
KEY: Final = re.compile(r"(?:sha256|source)-[0-9a-f]{64}")


class Question(Wire):
    """`host` names the machine of whoever asks: an address of the loopback is of use on the same one only."""

    node: str
    host: str
    have: tuple[tuple[int, int], ...] = ()
    """Runs of chunks that the asker has: who has no other need not answer. Perhaps not all of them."""


class Offer(Wire):
    """What one node has, and the leave to take it: GET `url` with `Authorization: Bearer <token>`, for some minutes."""

    node: str
    url: str
    token: str = Field(repr=False, pattern=r"^[A-Za-z0-9_-]{16,128}$")
    size_bytes: int = Field(ge=0)
    chunk_bytes: int = CHUNK_BYTES
    complete: bool = False
    sha256: str | None = None
    """Of the whole file, as this node computed it; known of complete ones."""
    have: tuple[tuple[int, int], ...] = ()
    """Runs of chunks. Of a complete file not told."""
    uploads: int = 0
    """Chunks that it is sending now."""


class CopyQuestion(Wire):
    """The body of `puna.node.<node>.copy`. `host` as in `Question`; left out, it is not asked whether the bytes could
    be had."""

    model: str
    host: str | None = None


class CopyFile(Wire):
    """One file of a copy."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: Role = "other"


class CopyTold(Wire):
    """The answer: a whole copy of a model, as the node has it. `main`: the file that an engine loads."""

    node: str
    model: str
    revision: str
    main: str
    files: tuple[CopyFile, ...]
