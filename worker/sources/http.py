"""`https://host/path` and `http://…`: one file, pinned to its ETag.

Its checksum is what the caller says; or, where `files` names `<file>.sha256` too, what that file says. The token of
`token_ref` goes as a bearer to the URL's origin only, and over http only on the loopback.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import random
import re
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, urlsplit

from schemas.source import SourceRef
from worker.sources import (
    BadListing,
    Denied,
    Digest,
    Listing,
    RemoteFile,
    Secrets,
    Signed,
    SourceError,
    Want,
    origin_of,
    shown_url,
)
from worker.transfer.backoff import Backoff
from worker.transfer.client import Answer, Client
from worker.transfer.cooldown import Cooldown
from worker.transfer.dial import Dial

log = logging.getLogger(__name__)

SIBLING: Final = ".sha256"
_SIBLING_BYTES: Final = 4096
_NO_HEAD: Final = re.compile(r"\((?:403|405|501)\)|with (?:400|405|501)")
_TOTAL: Final = re.compile(r"bytes 0-0/(\d{1,19})")


class Web:
    """The source for `http` and `https`. `client` is the downloads' own where there is one."""

    def __init__(
        self,
        client: Client | None = None,
        *,
        tries: int = 3,
        interval_s: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.client: Client = client or Client(Dial(15.0), Cooldown(), read_timeout_s=30.0)
        self._tries = tries
        self._interval_s = interval_s
        self._sleep = sleep

    async def resolve(self, ref: SourceRef, *, want: Want, secrets: Secrets) -> Listing:
        """Size and ETag of the file. Raises a `SourceError`."""
        RemoteFile(_name(ref.text), ref.text)  # a name that cannot stand in a folder is refused before anybody is asked
        signed = await self._signed(ref.text, want, secrets)
        backoff = Backoff(self._interval_s, self._tries)
        while True:
            try:
                return await self._look(ref, want, signed)
            except SourceError as error:
                wait_s = backoff.failed(random.random(), error.retry_after_s) if error.retryable else None  # noqa: S311
                if wait_s is None:
                    raise
                fields = {"event": "source_retry", "source": shown_url(ref.text), "reason": error.message}
                log.warning("source_retry", extra=fields | {"attempt": backoff.failures, "wait_s": round(wait_s, 3)})
                await self._sleep(wait_s)

    async def requests(self, file: RemoteFile, *, want: Want, secrets: Secrets) -> Signed:
        """The URL itself."""
        return await self._signed(file.url, want, secrets)

    async def _signed(self, url: str, want: Want, secrets: Secrets) -> Signed:
        if want.token_ref is None or origin_of(url) != origin_of(want.ref.text):
            return Signed(url)
        if urlsplit(url).scheme != "https" and not _is_loopback(urlsplit(url).hostname or ""):
            raise Denied(f"{shown_url(url)}: a token would travel readable for all; use https", of_node=False)
        token = await secrets.read(want.token_ref, key=want.parameters.get("secretKey"))
        return Signed(url, {"Authorization": f"Bearer {token}"})

    async def _look(self, ref: SourceRef, want: Want, signed: Signed) -> Listing:
        size, etag, stamp = await self._facts(signed)
        name = _name(ref.text)
        digest = want.checksum(name)
        if f"{name}{SIBLING}" in want.files:
            digest = await self._told(signed, name, digest)
        file = RemoteFile(name, ref.text, size, digest, etag, "model")
        return Listing(ref, _revision(size, etag, stamp, digest), (file,), name)

    async def _facts(self, signed: Signed) -> tuple[int | None, str | None, str | None]:
        """Size, ETag and time of the last change, as far as the server tells."""
        try:
            async with self.client.exchange("HEAD", signed) as answer:
                return _facts(answer, answer.head.length)
        except Denied as error:
            if not _NO_HEAD.search(error.message):
                raise
        async with self.client.exchange("GET", signed, {"Range": "bytes=0-0"}) as answer:
            hit = _TOTAL.fullmatch(answer.head.headers.get("content-range", ""))
            size = int(hit[1]) if hit else (answer.head.length if answer.head.status == 200 else None)
            await answer.connection.skip(1)
            return _facts(answer, size)

    async def _told(self, signed: Signed, name: str, given: Digest | None) -> Digest:
        """What the file beside it says."""
        parts = urlsplit(signed.url)
        beside = Signed(parts._replace(path=f"{parts.path}{SIBLING}").geturl(), signed.headers)
        text = await self.client.read(beside, limit_bytes=_SIBLING_BYTES)
        word = text.decode("latin-1").split()[:1]
        try:
            told = Digest("sha256", word[0].lower() if word else "")
        except ValueError as error:
            raise BadListing(f"{beside}: holds no sha256") from error
        if given is not None and given.algorithm == "sha256" and given != told:
            raise BadListing(f"{name}: is {told} by {beside}, and {given} is wanted")
        return given or told


def _facts(answer: Answer, size: int | None) -> tuple[int | None, str | None, str | None]:
    headers = answer.head.headers
    return size, headers.get("etag"), headers.get("last-modified")


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2]) or "model.gguf"


def _revision(size: int | None, etag: str | None, stamp: str | None, digest: Digest | None) -> str:
    """A digest says which content it is; then the ETag; then size and time."""
    if digest is not None:
        return str(digest).replace(":", "-")
    if etag:
        plain = etag.removeprefix("W/").strip('"')
        return f"etag-{plain if re.fullmatch(r'[A-Za-z0-9_-]{1,64}', plain) else _short(etag)}"
    try:
        return f"size-{size}-at-{int(parsedate_to_datetime(stamp or '').timestamp())}"
    except (TypeError, ValueError, OverflowError):
        return f"size-{size}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
