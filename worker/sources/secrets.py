"""Credentials by reference: they lie on the node, and only the name of their place travels.

| reference          | what it names                                                                                  |
|--------------------|------------------------------------------------------------------------------------------------|
| `env:NAME`         | a variable of the worker's environment                                                         |
| `file:/path[#key]` | a file; or a folder with one file a key, as secrets are mounted                                |
| `secret:NAME[#key]`| `NAME` among those of the settings, else in the folder `secrets` of the node's state           |

With a key, the content is a JSON object or has lines `key: value` or `key=value`. A folder without one means `token`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn, cast

from worker.devices import aside
from worker.sources.errors import Denied

log = logging.getLogger(__name__)

SECRET_LIMIT_BYTES: Final = 64 << 10
READ_LIMIT_S: Final = 10.0
DEFAULT_KEY: Final = "token"
FOLDER: Final = "secrets"
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_KEY: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)
_OTHERS: Final = 0o077


class Secret:
    """A credential that shows only where it came from, in whatever text it ends up."""

    __slots__ = ("_reference", "_value")

    def __init__(self, reference: str, value: str) -> None:
        self._reference = reference
        self._value = value

    def reveal(self) -> str:
        """The credential itself, for the one header it is meant for."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self._reference})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


class NodeSecrets:
    """Those of one node. `named`: files for `secret:NAME`, from the settings."""

    def __init__(
        self, state_dir: Path, named: Mapping[str, Path] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._folder = state_dir / FOLDER
        self._named = dict(named or {})
        self._environ = os.environ if environ is None else environ
        self._warned: set[Path] = set()

    async def read(self, reference: str, *, key: str | None = None) -> str:
        """The credential. Raises `Denied`, which names the reference and never what is behind it."""
        return (await self.find(reference, key=key)).reveal()

    async def find(self, reference: str, *, key: str | None = None) -> Secret:
        """The credential, wrapped. A key in the reference wins over `key`. Raises `Denied`."""
        kind, _, rest = reference.partition(":")
        name, mark, inner = rest.partition("#")
        key = inner if mark else key
        if key is not None and not _KEY.fullmatch(key):
            raise Denied(f"{kind}:{name}: the key must be of letters, digits, '.', '_' and '-'")
        if kind == "env":
            return Secret(reference, _part(self._of_environment(name), key, f"{kind}:{name}"))
        path = self._path(kind, name)
        try:
            text = await asyncio.wait_for(
                aside(lambda: self._content(path, key, f"{kind}:{name}"), "secret"), READ_LIMIT_S
            )
        except TimeoutError as error:
            raise Denied(f"{kind}:{name} could not be read within {READ_LIMIT_S:g} s") from error
        return Secret(reference, text)

    def variable(self, *names: str) -> str | None:
        """The first of these environment variables that is set and not empty."""
        return next((self._environ[name].strip() for name in names if self._environ.get(name, "").strip()), None)

    def _of_environment(self, name: str) -> str:
        value = self._environ.get(name, "")
        if not value.strip():
            raise Denied(f"env:{name} is not set on this node: set it where the worker is started")
        return value

    def _path(self, kind: str, name: str) -> Path:
        if kind == "file" and name.startswith("/"):
            return Path(name)
        if kind == "secret" and _NAME.fullmatch(name):
            return self._named.get(name, self._folder / name)
        raise Denied(f"{kind[:20]}:… is no reference; write env:NAME, file:/path or secret:NAME")

    def _content(self, path: Path, key: str | None, reference: str) -> str:
        """Blocks."""
        try:
            if path.is_dir():
                return _whole(self._text(path / (key or DEFAULT_KEY), reference), reference)
            return _part(self._text(path, reference), key, reference)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise Denied(f"{reference} cannot be read on this node ({reason}): {_remedy(reference, path)}") from None

    def _text(self, path: Path, reference: str) -> str:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            told = os.fstat(handle)
            if not stat.S_ISREG(told.st_mode):
                raise Denied(f"{reference} is no regular file")
            if told.st_mode & _OTHERS:
                self._warn(path, reference, told.st_mode)
            raw = file.read(SECRET_LIMIT_BYTES + 1)
        if len(raw) > SECRET_LIMIT_BYTES:
            raise Denied(f"{reference} is longer than {SECRET_LIMIT_BYTES} bytes: that is no credential")
        return raw.decode()

    def _warn(self, path: Path, reference: str, mode: int) -> None:
        """Once a file."""
        if path not in self._warned:
            self._warned.add(path)
            fields = {"event": "secret_readable_by_others", "reference": reference, "mode": f"{mode & 0o777:04o}"}
            log.warning("secret_readable_by_others", extra=fields | {"remedy": "chmod 600"})


def _remedy(reference: str, path: Path) -> str:
    where = f"put the credential into {path}" if reference.startswith("secret:") else "create it"
    return f"{where}, readable by the worker's user alone (chmod 600)"


def _part(text: str, key: str | None, reference: str) -> str:
    if key is None:
        return _whole(text, reference)
    value = _of_json(text, key) if text.lstrip().startswith("{") else _of_lines(text, key)
    if value is None:
        raise Denied(f"{reference} has no key {key!r}")
    return _whole(value, reference)


def _whole(text: str, reference: str) -> str:
    if not text.strip():
        raise Denied(f"{reference} is empty")
    return text.strip()


def _of_json(text: str, key: str) -> str | None:
    try:
        parts = cast(object, json.loads(text))
    except ValueError:
        return None
    value = cast(dict[str, object], parts).get(key) if isinstance(parts, dict) else None
    return value if isinstance(value, str) else None


def _of_lines(text: str, key: str) -> str | None:
    line = re.compile(rf"\s*(?:export\s+)?{re.escape(key)}\s*[:=]\s*(?P<value>.*?)\s*")
    hits = (line.fullmatch(each) for each in text.splitlines())
    value = next((hit["value"] for hit in hits if hit), None)
    return value.strip("\"'") if value is not None else None
