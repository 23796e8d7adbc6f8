"""API keys: who may call. Keys are held as SHA-256 digests and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import AuthenticationFailed, NotAllowed
from web.address import is_loopback, split_address

KEY_LIMIT_CHARS: Final = 512
EVERY_KEY: Final = "*"
"""Among the names of the keys that may manage: all of them."""
_DIGEST: Final = re.compile(r"(?:([A-Za-z0-9._-]{1,64}):)?sha256:([0-9a-fA-F]{64})")
_NAMED: Final = re.compile(r"([A-Za-z0-9._-]{1,64}):(\S+)")
_BARE: Final = re.compile(r"\S+")


class BadKey(ValueError):
    """A line that holds no usable key. The text names the line's number and never the key."""


class OpenDoor(ValueError):
    """A server would be open to others without a key. The text says what to do."""

    def __init__(self, listen: str, remedy: str) -> None:
        super().__init__(
            f"{listen} can be reached by others, and no API key is set. Put keys into a file, one a line as "
            f"'name:key', and {remedy}. Or listen on 127.0.0.1 only."
        )


@dataclass(frozen=True, slots=True)
class Key:
    """One key: the name that logs and metrics show, and the digest of what the client sends."""

    name: str
    digest: bytes


class Keyring:
    """The keys that may call, and the names of those that may also manage. An empty ring lets everybody in, as `tenant`
    None, to do everything."""

    def __init__(self, keys: Iterable[Key] = (), *, admins: Iterable[str] = ()) -> None:
        self._keys = tuple(keys)
        self._admins = frozenset(admins)

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, headers: Mapping[str, str]) -> str | None:
        """The name of the caller's key. Raises `AuthenticationFailed`."""
        if not self._keys:
            return None
        given = presented(headers)
        if not given:
            raise AuthenticationFailed("no API key; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found: Key | None = None
        for key in self._keys:  # all of them, so that the time taken does not tell which one was near
            found = key if hmac.compare_digest(key.digest, digest) else found
        if found is None:
            raise AuthenticationFailed("this API key is not known here")
        return found.name

    def check_admin(self, headers: Mapping[str, str]) -> str | None:
        """As `check`, for what changes the fleet. Raises `NotAllowed` too."""
        name = self.check(headers)
        if name is None or name in self._admins or EVERY_KEY in self._admins:
            return name
        raise NotAllowed(f"the key {name!r} may ask models and not manage them; the operator names those in admin_keys")


def presented(headers: Mapping[str, str]) -> str:
    """The key that a request carries, or nothing."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()[:KEY_LIMIT_CHARS]
    return headers.get("x-api-key", "").strip()[:KEY_LIMIT_CHARS]


def parse_key(text: str, place: str) -> Key:
    """One key: `key`, `name:key`, `sha256:<hex>` or `name:sha256:<hex>`. Raises `BadKey`, which names `place`."""
    if hit := _DIGEST.fullmatch(text):
        digest = bytes.fromhex(hit[2])
        return Key(hit[1] or f"key-{digest.hex()[:8]}", digest)
    if hit := _NAMED.fullmatch(text):
        return Key(hit[1], hashlib.sha256(hit[2].encode()).digest())
    if _BARE.fullmatch(text):
        digest = hashlib.sha256(text.encode()).digest()
        return Key(f"key-{digest.hex()[:8]}", digest)
    raise BadKey(f"{place}: no key; write 'key', 'name:key' or 'name:sha256:<64 hex digits>'")


def parse_file(text: str, source: str) -> list[Key]:
    """The keys of a file, one a line; blank lines and `#` comments are skipped. Raises `BadKey`."""
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [parse_key(line, f"{source}:{number}") for number, line in numbered if line and not line.startswith("#")]


def load_keys(file: Path | None, given: Iterable[str], admins: Iterable[str] = ()) -> Keyring:
    """The ring of a file's keys and those given directly. Raises `BadKey` and `OSError`."""
    keys = parse_file(file.read_text(encoding="utf-8"), str(file)) if file else []
    keys += [parse_key(text, f"api_keys[{index}]") for index, text in enumerate(given)]
    if file and not keys:
        raise BadKey(f"{file}: holds no key; write one a line")
    named, wanted = {key.name for key in keys}, set(admins)
    if keys and (unknown := sorted(wanted - named - {EVERY_KEY})):
        raise BadKey(f"admin_keys: no key is named {unknown[0]!r}; there is {', '.join(sorted(named))}")
    return Keyring(keys, admins=wanted)


def keys_for(
    listen: str, file: Path | None, given: Iterable[str], *, remedy: str, admins: Iterable[str] = ()
) -> Keyring:
    """The ring of a server that listens on `listen`. `remedy` says how keys are set there; `admins` are the names of
    those that may manage.

    Raises `BadKey`, `OSError`, and `OpenDoor` where others could call without a key.
    """
    keyring = load_keys(file, given, admins)
    if not len(keyring) and not is_loopback(split_address(listen)[0]):
        raise OpenDoor(listen, remedy)
    return keyring
