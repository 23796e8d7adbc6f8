"""The text of a settings file, YAML or TOML, as a mapping, with the place of each key.

`${env.NAME}` in a string is replaced and fails when NAME is not set.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

import yaml

Path = tuple[str | int, ...]
LINE_UNKNOWN: Final = -1
"""In the file, but its reader does not say where."""
_ENV = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigError(ValueError):
    """Settings that cannot be used. The text names the place and the remedy, one line a problem."""


def read_text(text: str, source: str, environ: Mapping[str, str], lines: dict[Path, int]) -> dict[str, Any]:
    """The mapping that a file is. `lines` gets the place of each key. Raises `ConfigError`."""
    if source.endswith(".toml"):
        return _from_toml(text, source, environ, lines)
    return _from_yaml(text, source, environ, lines)


def _from_toml(text: str, source: str, environ: Mapping[str, str], lines: dict[Path, int]) -> dict[str, Any]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    lines.update(dict.fromkeys(_paths(data, ()), LINE_UNKNOWN))
    return cast(dict[str, Any], _with_environment(data, (), source, environ, lines))


def _paths(value: Any, path: Path) -> Iterator[Path]:
    yield path
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        inner = cast(dict[str, Any], value).items()
    elif isinstance(value, list):
        inner = enumerate(cast(list[Any], value))
    for key, below in inner:
        yield from _paths(below, (*path, key))


def _from_yaml(text: str, source: str, environ: Mapping[str, str], lines: dict[Path, int]) -> dict[str, Any]:
    try:
        root = cast(yaml.Node | None, yaml.compose(text, Loader=yaml.SafeLoader))
        if root is None:
            return {}
        _note_lines(root, (), lines)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: the file is no mapping; write 'key: value' lines")
    return cast(dict[str, Any], _with_environment(data, (), source, environ, lines))


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        pairs: list[tuple[Any, yaml.Node]] = node.value
        for key, value in pairs:
            inner = (*path, str(key.value))
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(cast(list[yaml.Node], node.value)):
            _note_lines(value, (*path, index), lines)


def _with_environment(
    value: Any, path: Path, source: str, environ: Mapping[str, str], lines: Mapping[Path, int]
) -> Any:
    if isinstance(value, dict):
        items = cast(dict[Any, Any], value).items()
        return {k: _with_environment(v, (*path, str(k)), source, environ, lines) for k, v in items}
    if isinstance(value, list):
        each = enumerate(cast(list[Any], value))
        return [_with_environment(v, (*path, index), source, environ, lines) for index, v in each]
    if not isinstance(value, str):
        return value
    for name in _ENV.findall(value):
        if name not in environ:
            raise ConfigError(f"{place(source, path, lines)}: the environment has no {name}; set it or remove it here")
    return _ENV.sub(lambda hit: environ[hit[1]], value)


def place(source: str, path: Path, lines: Mapping[Path, int]) -> str:
    """Where a key stands, for people."""
    key = ".".join(str(part) for part in path) or "top level"
    known: Path = path
    while known and known not in lines:
        known = known[:-1]
    line = lines.get(known) if known else None
    if line == LINE_UNKNOWN:
        return f"{source}: {key}"
    return f"{source}:{line}: {key}" if line else key
