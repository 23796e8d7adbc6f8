"""An object store through obstore, which is loaded when it is needed. Errors are ours, without its texts."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from worker.sources import BadListing, Denied, NotThere, SourceError, Throttled, Unreachable, Unsupported
from worker.sources.s3keys import Keys
from worker.sources.s3place import Place

if TYPE_CHECKING:
    from obstore.store import S3Store

SIGNED_FOR: Final = timedelta(hours=1)
OBJECTS_LIMIT: Final = 500_000
_ANSWER_LIMIT_S: Final = 30
_STATUS: Final = re.compile(r"status code: (\d{3})")
_MISSING: Final = "s3:// and oci:// need obstore, which is not installed on this node: pip install 'puna[s3]'"


@dataclass(frozen=True, slots=True)
class Held:
    """One object, by its name below the folder."""

    name: str
    size_bytes: int
    etag: str | None


def opened(place: Place, keys: Keys) -> S3Store:
    """Made anew each time: the environment must not mix in (obstore reads AWS_* by itself), keys may have changed."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise Unsupported(_MISSING, of_node=True) from error
    config: dict[str, Any] = {
        "region": place.region,
        "virtual_hosted_style_request": place.virtual,
        "skip_signature": keys.kind == "anonymous",
        "client_options": {"allow_http": True, "timeout": f"{_ANSWER_LIMIT_S}s", "connect_timeout": "10s"},
        "retry_config": {"max_retries": 0},
    }
    endpoint = place.endpoint or f"https://s3.{place.region}.amazonaws.com"
    if place.endpoint is not None or not place.virtual:
        config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
    if keys.kind != "instance":
        config["credential_provider"] = lambda: _credential(keys)
    try:
        return S3Store(place.bucket, **config)
    except Exception as error:  # noqa: BLE001  whatever it finds wrong in what was given
        raise Denied(f"the store {place.base} cannot be opened with what is given ({type(error).__name__})") from None


def _credential(keys: Keys) -> Any:
    return {
        "access_key_id": keys.access,
        "secret_access_key": keys.secret,
        "token": keys.session,
        "expires_at": None,
    }


async def sign(store: S3Store, key: str) -> str:
    import obstore

    try:
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            return await obstore.sign_async(store, "GET", key, SIGNED_FOR)
    except TimeoutError as error:
        raise Unreachable("the credentials for the object store did not come in time") from error
    except Exception as error:  # noqa: BLE001  its text may hold what it signs with
        raise Denied(f"a URL of the object store cannot be signed ({type(error).__name__})") from None


async def head(store: S3Store, folder: str, name: str) -> Held:
    import obstore

    found = await obstore.head_async(store, folder + name)
    return Held(name, found["size"], found["e_tag"])


async def below(store: S3Store, folder: str, place: str) -> list[Held]:
    """All objects below the folder; without markers of folders."""
    held: list[Held] = []
    async for batch in store.list(folder or None):
        found = (each for each in batch if each["path"].startswith(folder))
        held += [Held(each["path"].removeprefix(folder), each["size"], each["e_tag"]) for each in found]
        if len(held) > OBJECTS_LIMIT:
            raise BadListing(f"{place}: there are more than {OBJECTS_LIMIT} objects")
    if not held:
        raise NotThere(f"{place}: there is nothing")
    return held


def translated(error: Exception, place: str) -> SourceError:
    """What obstore says. Its own text holds the request, and the store's answer, and is not passed on."""
    kind = type(error).__name__
    hit = _STATUS.search(str(error))
    status = int(hit[1]) if hit else None
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotThere(f"{place}: there is no such object or bucket; end it with / to mean all below it")
    if kind == "InvalidPathError":
        return BadListing(f"{place}: the store lists a key with '.', '..' or an empty part, which no file can have")
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (400, 401, 403):
        return Denied(f"{place}: the store refuses; check the keys, what they may read, and the region")
    if (status is not None and 300 <= status < 400) or "redirect without LOCATION" in str(error):
        return Denied(f"{place}: the bucket is in another region: set parameters.region")
    if status == 429 or "SlowDown" in str(error):
        return Throttled(f"{place}: the store was asked too often")
    return Unreachable(f"{place}: the store cannot be asked ({f'status {status}' if status else kind})")
