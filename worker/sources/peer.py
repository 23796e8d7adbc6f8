"""The copy that another node has: it tells its files, and they come by the way that nodes share files, of whoever has
them. No other origin is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import orjson
from pydantic import ValidationError

from bus.connection import Bus, Message
from bus.errors import BusDenied, NoResponders
from bus.kv import Bucket
from schemas.errors import DeadlineExceeded, PunaError
from schemas.peer import CopyFile, CopyQuestion, CopyTold
from schemas.source import SourceRef
from schemas.subjects import H_SERVICE_ERROR_CODE, encode
from worker.sources import (
    BadListing,
    Denied,
    Digest,
    Listing,
    NotThere,
    RemoteFile,
    Secrets,
    Signed,
    SourceError,
    Unreachable,
    Unsupported,
    Want,
)
from worker.sources.picking import pick, vouched

SCHEME: Final = "peer"
ANSWER_LIMIT_S: Final = 5.0
_TEXT_CHARS: Final = 300


class Peer:
    """The source for `peer`. `own` tells a copy of this node itself; `host` names its machine. Without a bus nothing is
    found."""

    def __init__(
        self, bus: Bus | None = None, node: str = "", host: str = "", own: Callable[[str], CopyTold] | None = None
    ) -> None:
        self._bus = bus
        self._node = node
        self._host = host
        self._own = own

    async def resolve(self, ref: SourceRef, *, want: Want, secrets: Secrets) -> Listing:
        """What that node has of the model. Raises a `SourceError`, which names the node."""
        told = await self._told(ref)
        if want.revision not in (None, told.revision):
            raise NotThere(f"{ref.text}: node {ref.place} has revision {told.revision}, not {want.revision}")
        files, main = {file.path: file for file in told.files}, told.main
        if want.files or want.quant:
            chosen = pick(tuple(files), want, ref.text)
            files, main = {name: files[name] for name in chosen.names}, chosen.main
        if main not in files:
            raise BadListing(f"{ref.text}: node {ref.place} names no file to load")
        return Listing(ref, told.revision, tuple(_remote(file, ref, want) for file in files.values()), main)

    async def requests(self, file: RemoteFile, *, want: Want, secrets: Secrets) -> Signed:
        """Raises `Unsupported`: nodes give their files in chunks, and to nodes only."""
        raise Unsupported(f"{want.ref.text}: files of a node come in chunks, which this node cannot take")

    async def _told(self, ref: SourceRef) -> CopyTold:
        if self._bus is None or ref.inner is None:
            raise Unsupported(f"{ref.text}: there is no NATS to ask over")
        try:
            if ref.place == self._node and self._own is not None:
                return self._own(ref.inner)
            return await self._asked(self._bus, ref)
        except PunaError as error:
            raise _translated(ref, error) from error

    async def _asked(self, bus: Bus, ref: SourceRef) -> CopyTold:
        question = CopyQuestion(model=ref.inner or "", host=self._host)
        try:
            answer = await bus.request(
                bus.names.node(ref.place, "copy"), question.model_dump_json().encode(), timeout_s=ANSWER_LIMIT_S
            )
        except NoResponders as error:
            raise await _absent(bus, ref) from error
        except DeadlineExceeded as error:
            raise Unreachable(f"{ref.text}: node {ref.place} did not answer in {ANSWER_LIMIT_S:g} s") from error
        return _read(ref, answer)


async def _absent(bus: Bus, ref: SourceRef) -> SourceError:
    """Nobody hears what is asked of the node."""
    known = await Bucket(bus, bus.names.bucket_nodes).get(encode(ref.place))
    if known is not None:
        return Unreachable(f"{ref.text}: node {ref.place} does not answer")
    return NotThere(f"{ref.text}: there is no node {ref.place} now")


def _read(ref: SourceRef, answer: Message) -> CopyTold:
    status = (answer.headers or {}).get(H_SERVICE_ERROR_CODE)
    if status is not None:
        text = f"{ref.text}: {_message(ref, answer.payload)}"
        raise _KINDS.get(status, Unreachable)(text)
    try:
        told = CopyTold.model_validate_json(answer.payload)
    except ValidationError as error:
        raise BadListing(f"{ref.text}: what node {ref.place} answered cannot be read") from error
    if told.model != ref.inner:
        raise BadListing(f"{ref.text}: node {ref.place} told of another model")
    return told


_KINDS: Final[dict[str, type[SourceError]]] = {"400": Unsupported, "403": Unsupported, "404": NotThere}


def _message(ref: SourceRef, payload: bytes) -> str:
    try:
        return str(orjson.loads(payload)["error"]["message"])[:_TEXT_CHARS]
    except (ValueError, KeyError, TypeError):
        return f"node {ref.place} refused"


def _translated(ref: SourceRef, error: PunaError) -> SourceError:
    text = f"{ref.text}: {error.message}"
    if isinstance(error, BusDenied):
        return Denied(text)
    return _KINDS.get(str(error.http_status), Unreachable)(text)


def _remote(file: CopyFile, ref: SourceRef, want: Want) -> RemoteFile:
    url = f"{SCHEME}://{ref.place}/{encode(ref.inner or '')}/{quote(file.path)}"
    digest = vouched(file.path, Digest("sha256", file.sha256), want, ref.text)
    if digest is None or digest.algorithm != "sha256":
        raise Unsupported(f"{ref.text}: nodes know {file.path} by its sha256; give that as its checksum")
    return RemoteFile(file.path, url, file.size_bytes, digest, role=file.role)
