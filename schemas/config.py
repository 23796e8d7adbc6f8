"""Settings out of YAML, the environment and the command line, as pure functions over text.

Precedence: command line, environment (`PUNA_`, `__` nests), file, default. `${env.NAME}` in a file's string is replaced
and fails when NAME is not set. An error names file, line and key, and the nearest right key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]
_ENV = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigError(ValueError):
    """Settings that cannot be used. The text names the place and the remedy, one line a problem."""


def load(
    model: type[M],
    *,
    text: str = "",
    source: str = "the configuration",
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    prefix: str = "PUNA_",
) -> M:
    """Settings of type `model`. `source` names the file for messages; `overrides` is nested, `None` means not given.

    Raises `ConfigError`.
    """
    lines: dict[Path, int] = {}
    from_file = _from_yaml(text, source, environ or {}, lines)
    merged = _merge(from_file, from_environment(model, environ or {}, prefix))
    merged = _merge(merged, _without_none(overrides or {}))
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, source, lines, item) for item in error.errors())) from error


def words(value: Any) -> Any:
    """For pydantic's `BeforeValidator`: a list may be one text with commas, as in an environment variable."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def from_environment(model: type[BaseModel], environ: Mapping[str, str], prefix: str = "PUNA_") -> dict[str, Any]:
    """What the environment says of the model's fields. Variables that name no field belong to somebody else."""
    out: dict[str, Any] = {}
    known = _keys(model)
    for name, value in sorted(environ.items()):
        parts = name.removeprefix(prefix).lower().split("__") if name.startswith(prefix) else []
        if parts and parts[0] in known and value != "":
            _put(out, parts, _scalar(value))
    return out


def _scalar(value: str) -> Any:
    """Lists and objects may be given as YAML or JSON; all else stays text, which pydantic turns into what is wanted."""
    if value[:1] in "[{":
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    return value


def _put(out: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        inner = out.setdefault(part, {})
        out = cast(dict[str, Any], inner) if isinstance(inner, dict) else out
    out[parts[-1]] = value


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        below = out.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            out[key] = _merge(cast(Mapping[str, Any], below), cast(Mapping[str, Any], value))
        else:
            out[key] = value
    return out


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = _without_none(cast(Mapping[str, Any], value))
            out |= {key: inner} if inner else {}
        elif value is not None:
            out[key] = value
    return out


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
            raise ConfigError(f"{_place(source, path, lines)}: the environment has no {name}; set it or remove it here")
    return _ENV.sub(lambda hit: environ[hit[1]], value)


def _place(source: str, path: Path, lines: Mapping[Path, int]) -> str:
    key = ".".join(str(part) for part in path) or "top level"
    known: Path = path
    while known and known not in lines:
        known = known[:-1]
    line = lines.get(known) if known else None
    return f"{source}:{line}: {key}" if line else key


def _explain(model: type[BaseModel], source: str, lines: Mapping[Path, int], item: Mapping[str, Any]) -> str:
    path = cast(Path, tuple(item["loc"]))
    place = _place(source, path, lines)
    if item["type"] != "extra_forbidden":
        return f"{place}: {item['msg']}"
    near = difflib.get_close_matches(str(path[-1]), _keys_at(model, path[:-1]), n=1)
    return f"{place}: no such key" + (f"; did you mean {near[0]!r}?" if near else "")


def _keys_at(model: type[BaseModel], path: Path) -> list[str]:
    current: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int) or current is None:
            continue
        found = current.model_fields.get(part)
        current = _model_in(found.annotation) if found else None
    return _keys(current) if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def _keys(model: type[BaseModel]) -> list[str]:
    names = list(model.model_fields)
    for spec in model.model_fields.values():
        choices = getattr(spec.validation_alias, "choices", [spec.validation_alias])
        names += [choice for choice in choices if isinstance(choice, str)]
    return names
