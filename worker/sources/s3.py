"""`s3://bucket/key`, of any endpoint, and `oci://n/NS/b/BUCKET/o/KEY` by Oracle's S3 interface.

A key that ends in `/` means the folder below it, from which files are chosen as from a repository (`schemas.hubfiles`);
else it is the one object, with all its parts if it is split. Listings come through obstore (extra `s3`); the bytes by
URLs that it signs for a while and that take ranges like any other.

`parameters`: `endpoint`, `region`, `path_style` (`true` or `false`; unset: only AWS has buckets in host names), `auth`
and `profile` (see `s3keys`). An ETag that is an MD5 is checked; that of a multipart upload is none: then nothing but
`checksums` vouches for the bytes, which is logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from schemas.hubfiles import part_names, role_of
from schemas.source import SourceRef
from worker.sources import Digest, Listing, NotThere, RemoteFile, Secrets, Signed, SourceError, Unreachable, Want
from worker.sources.asking import Patience, patiently
from worker.sources.picking import pick, vouched
from worker.sources.s3keys import Keys, find_keys
from worker.sources.s3place import Place, folder_of, place_of, shown
from worker.sources.s3store import Held, below, head, opened, sign, translated

if TYPE_CHECKING:
    from obstore.store import S3Store

log = logging.getLogger(__name__)

_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')


class ObjectStore:
    """The source for `s3` and `oci`."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience(retries=3, interval_s=1.0)
        self._instance: dict[Place, S3Store] = {}
        """Kept, because each asks the machine's metadata for its keys, which is not to be asked for every range."""

    async def resolve(self, ref: SourceRef, *, want: Want, secrets: Secrets) -> Listing:
        """The objects of what is wanted. Raises a `SourceError`."""
        keys = await find_keys(want, secrets)
        place = place_of(ref, want.parameters, keys, secrets)
        store = self._store(place, keys)
        return await patiently(lambda: self._look(store, place, ref, want), self._patience, place.base, shown(ref))

    async def requests(self, file: RemoteFile, *, want: Want, secrets: Secrets) -> Signed:
        """A URL that is good for an hour. Raises a `SourceError`."""
        keys = await find_keys(want, secrets)
        if keys.kind == "anonymous":
            return Signed(file.url)
        place = place_of(want.ref, want.parameters, keys, secrets)
        return Signed(await sign(self._store(place, keys), folder_of(want.ref)[0] + file.path))

    def _store(self, place: Place, keys: Keys) -> S3Store:
        if keys.kind != "instance":
            return opened(place, keys)
        return self._instance.get(place) or self._instance.setdefault(place, opened(place, keys))

    async def _look(self, store: S3Store, place: Place, ref: SourceRef, want: Want) -> Listing:
        try:
            async with asyncio.timeout(self._patience.look_limit_s):
                return await self._listing(store, place, ref, want)
        except TimeoutError as error:
            raise Unreachable(f"{shown(ref)}: the store took too long to list it") from error
        except SourceError:
            raise
        except Exception as error:  # noqa: BLE001  obstore's errors, whose texts hold the whole request
            raise translated(error, shown(ref)) from None

    async def _listing(self, store: S3Store, place: Place, ref: SourceRef, want: Want) -> Listing:
        folder, file = folder_of(ref)
        whole = file is not None and not want.files and len(part_names(file)) == 1
        held = [await head(store, folder, file)] if file and whole else await below(store, folder, shown(ref))
        if file is not None and not any(each.name == file for each in held):
            raise NotThere(f"{shown(ref)}: there is no such object; end it with / to mean all below it")
        chosen = pick([each.name for each in held], want, shown(ref), file=file)
        known = {each.name: each for each in held}
        files = tuple(_file(known[name], chosen.main, place, folder, want) for name in chosen.names)
        _say_unvouched(files, ref)
        return Listing(ref, _revision(known[name] for name in chosen.names), files, chosen.main)


def _file(held: Held, main: str, place: Place, folder: str, want: Want) -> RemoteFile:
    hit = _MD5.fullmatch(held.etag or "")
    digest = vouched(held.name, Digest("md5", hit[1]) if hit else None, want, shown(want.ref))
    url = place.url(folder + held.name)
    return RemoteFile(held.name, url, held.size_bytes, digest, held.etag, role_of(held.name, main))


def _say_unvouched(files: Sequence[RemoteFile], ref: SourceRef) -> None:
    without = [file.path for file in files if file.digest is None]
    if without:
        fields = {"event": "source_unvouched", "source": shown(ref), "files": without[:10], "count": len(without)}
        log.warning("source_unvouched", extra=fields | {"remedy": "give checksums: nothing but the size is checked"})


def _revision(files: Iterable[Held]) -> str:
    """A hash over names, sizes and ETags: it changes when one of them does."""
    text = "".join(
        f"{file.name}\0{file.size_bytes}\0{file.etag}\n" for file in sorted(files, key=lambda file: file.name)
    )
    return f"etag-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
