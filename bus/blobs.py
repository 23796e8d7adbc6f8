"""Bodies that are too large for one message: an object store of NATS (ADR-20), so that `nats object` reads it too."""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import UTC, datetime
from typing import Any, Final, cast

import orjson

from bus.connection import Bus
from bus.errors import NoResponders, NoStream
from bus.message import Message
from schemas.errors import BusUnavailable, DeadlineExceeded, NotFound

CHUNK_BYTES: Final = 512 * 1024
"""At most; half of the server's `max_payload` if that is less."""
_TIMEOUT_S: Final = 5.0
_ROLLUP: Final = {"Nats-Rollup": "sub"}


class Blobs:
    """One object store bucket. Whole objects only; what `put` returned from is whole for every reader."""

    def __init__(self, bus: Bus, bucket: str) -> None:
        self._bus = bus
        self._bucket: Final = bucket
        self._stream: Final = f"OBJ_{bucket}"

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`, replacing what was there. Raises `BusUnavailable`, `NoStream`, `LineFull` (bucket full)."""
        before = await self._info(name)
        nuid = secrets.token_hex(11)
        size = min(CHUNK_BYTES, self._bus.max_payload // 2)
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        for piece in pieces:
            await self._bus.js_publish(self._chunks(nuid), piece, timeout_s=_TIMEOUT_S)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        await self._write(name, nuid=nuid, size=len(data), chunks=len(pieces), digest=f"SHA-256={digest}")
        if before is not None:
            await self._purge(str(before["nuid"]))

    async def get(self, name: str) -> bytes:
        """The data. Raises `NotFound` when it was never there, deleted or too old, `BusUnavailable`."""
        info = await self._info(name)
        if info is None:
            raise NotFound(f"blob {name!r} is not in {self._bucket}; it may have been deleted or have grown too old")
        pieces: list[bytes] = []
        sequence = 1
        for _ in range(int(info["chunks"])):
            piece = await self._read({"seq": sequence, "next_by_subj": self._chunks(str(info["nuid"]))})
            if piece is None or piece.headers is None:
                raise NotFound(f"blob {name!r} lost a part while it was read")
            pieces.append(piece.payload)
            sequence = int(piece.headers["Nats-Sequence"]) + 1
        return _checked(name, b"".join(pieces), str(info["digest"]))

    async def delete(self, name: str) -> bool:
        """Remove it. False if it was not there. Raises `BusUnavailable`."""
        info = await self._info(name)
        if info is None:
            return False
        await self._write(name, nuid=str(info["nuid"]), size=0, chunks=0, digest="", deleted=True)
        await self._purge(str(info["nuid"]))
        return True

    def _chunks(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"

    def _meta(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def _info(self, name: str) -> dict[str, Any] | None:
        found = await self._read({"last_by_subj": self._meta(name)})
        info = None if found is None else cast("dict[str, Any]", orjson.loads(found.payload))
        return None if info is None or info.get("deleted") else info

    async def _write(self, name: str, **info: Any) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {"name": name, "bucket": self._bucket, "mtime": now, "options": {"max_chunk_size": CHUNK_BYTES}, **info}
        await self._bus.js_publish(self._meta(name), orjson.dumps(body), headers=_ROLLUP, timeout_s=_TIMEOUT_S)

    async def _purge(self, nuid: str) -> None:
        body = {"filter": self._chunks(nuid)}
        await self._bus.js_api(f"STREAM.PURGE.{self._stream}", body, timeout_s=_TIMEOUT_S)

    async def _read(self, question: dict[str, Any]) -> Message | None:
        """One message of the stream, whichever replica has it."""
        subject = f"{self._bus.js_prefix}DIRECT.GET.{self._stream}"
        try:
            found = await self._bus.request(subject, orjson.dumps(question), timeout_s=_TIMEOUT_S)
        except NoResponders as error:
            raise NoStream(f"object store {self._bucket} does not exist", retry_after_s=1.0) from error
        except DeadlineExceeded as error:
            raise BusUnavailable(f"JetStream did not answer for {self._bucket}: {error.message}") from error
        return None if found.status == "404" else _no_error(found)


def _no_error(found: Message) -> Message:
    if found.status:
        raise BusUnavailable(f"JetStream answered {found.status} to a direct get")
    return found


def _checked(name: str, data: bytes, digest: str) -> bytes:
    if digest != f"SHA-256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()}":
        raise BusUnavailable(f"blob {name!r} is not what was put there: its checksum differs")
    return data
