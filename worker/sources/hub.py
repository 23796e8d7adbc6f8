"""`hf://owner/repo[@revision][:quant][#file]`: the Hugging Face Hub, or what `HF_ENDPOINT` says.

The Hub's library is asked for metadata alone, and the commit is pinned: a branch that moves while bytes are fetched
changes nothing. Which files are meant is said in `schemas.hubfiles`. LFS objects are checked by sha256, small files by
the hash that git has for them. The token, of these the first that there is: `token_ref` (with `parameters.secretKey`
if it has parts), `HUGGINGFACE_TOKEN`, `HF_TOKEN`, the one that the library keeps. It is sent to the Hub's origin only.

With `HF_HUB_OFFLINE` nobody is asked: what the user's Hugging Face cache has of the revision is what there is.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from schemas.hubfiles import role_of
from schemas.source import SourceRef
from worker.devices import aside
from worker.sources import (
    Denied,
    Listing,
    RemoteFile,
    Secrets,
    Signed,
    Unreachable,
    Unsupported,
    Want,
    origin_of,
)
from worker.sources.asking import Patience, patiently
from worker.sources.hubcache import cache_folder, snapshot
from worker.sources.huberrors import OFFLINE
from worker.sources.hubguard import Look
from worker.sources.hublook import Seen, check_access, seen, stored_token
from worker.sources.picking import pick, vouched

ENDPOINT: Final = "https://huggingface.co"
_TOKEN_LIMIT_S: Final = 15.0
_YES: Final = frozenset(("1", "on", "yes", "true"))


class Hub:
    """The source for `hf`."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()

    async def resolve(self, ref: SourceRef, *, want: Want, secrets: Secrets) -> Listing:
        """Commit, files and digests of what is wanted. Raises a `SourceError`."""
        endpoint = _endpoint(secrets)
        if offline(secrets):
            cache = cache_folder(secrets)
            return await aside(lambda: _of_cache(cache, ref, want), "hub-cache")
        token = await _token(want, secrets)
        return await patiently(lambda: self._look(ref, want, endpoint, token), self._patience, endpoint, ref.place)

    async def requests(self, file: RemoteFile, *, want: Want, secrets: Secrets) -> Signed:
        """The `resolve` page of the file: it redirects to a URL that is signed for a while."""
        if offline(secrets):
            raise Unsupported(f"{want.ref.place}: {OFFLINE}", of_node=True)
        if origin_of(file.url) != origin_of(_endpoint(secrets)):
            return Signed(file.url)
        token = await _token(want, secrets)
        return Signed(file.url, {"Authorization": f"Bearer {token}"} if token else {})

    async def _look(self, ref: SourceRef, want: Want, endpoint: str, token: str | None) -> Listing:
        limit_s = self._patience.look_limit_s
        look = Look(endpoint, ref.place, want.revision or ref.revision, token, time.monotonic() + limit_s)
        try:
            return await asyncio.wait_for(aside(lambda: _listing(look, ref, want), "hub-look"), limit_s + 1)
        except TimeoutError as error:
            raise Unreachable(f"the Hub took too long to tell of {ref.place}") from error
        finally:
            look.ended.set()


def _listing(look: Look, ref: SourceRef, want: Want) -> Listing:
    """Blocks."""
    found = seen(look)
    chosen = pick(found.names, want, ref.place, file=ref.inner)
    files = tuple(_file(found, name, chosen.main, look, want) for name in chosen.names)
    if found.gated:
        check_access(look, files[0].url)
    return Listing(ref, found.commit, files, chosen.main)


def _of_cache(cache: Path, ref: SourceRef, want: Want) -> Listing:
    """Blocks. The files are copied from where they lie."""
    found = snapshot(cache, ref.place, want.revision or ref.revision)
    chosen = pick(tuple(found.files), want, ref.place, file=ref.inner)
    files: list[RemoteFile] = []
    for name in chosen.names:
        held = found.files[name]
        digest = vouched(name, held.digest, want, ref.place)
        role = role_of(name, chosen.main)
        files.append(RemoteFile(name, held.path.as_uri(), held.size_bytes, digest, role=role))
    return Listing(ref, found.commit, tuple(files), chosen.main)


def _file(found: Seen, name: str, main: str, look: Look, want: Want) -> RemoteFile:
    told = found.file(name)
    digest = vouched(name, told.digest, want, look.repository)
    url = f"{look.endpoint}/{look.repository}/resolve/{found.commit}/{quote(name)}"
    return RemoteFile(name, url, told.size_bytes, digest, role=role_of(name, main))


def offline(secrets: Secrets) -> bool:
    """Whether this node must not ask the Hub."""
    return (secrets.variable("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") or "").lower() in _YES


def _endpoint(secrets: Secrets) -> str:
    given = (secrets.variable("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    if not given.startswith(("https://", "http://")):
        raise Unsupported("HF_ENDPOINT is no http address; unset it, or give one like https://huggingface.co")
    return given


async def _token(want: Want, secrets: Secrets) -> str | None:
    if want.token_ref is not None:
        token: str | None = await secrets.read(want.token_ref, key=want.parameters.get("secretKey"))
        name = want.token_ref
    else:
        token = secrets.variable("HUGGINGFACE_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") or await _stored()
        name = "the token of this node"
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise Denied(f"{name} holds no token: it has spaces, line ends or unprintable characters")
    return token or None


async def _stored() -> str | None:
    try:
        return await asyncio.wait_for(aside(stored_token, "hub-token"), _TOKEN_LIMIT_S)
    except TimeoutError as error:
        raise Denied("the token that the Hub's library keeps cannot be read; name another with token_ref") from error
