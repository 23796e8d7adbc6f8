"""Settings out of YAML or TOML, the environment and the command line, as pure functions over text.

Precedence: command line, environment (`PUNA_`, `__` nests), file, default. `${env.NAME}` in a file's string is replaced
and fails when NAME is not set. A field whose name ends with its unit takes text with a unit too (`schemas.units`). An
error names file, line and key, and the nearest right key.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from schemas.aliases import Aliases
from schemas.configtext import ConfigError, Path, place, read_text
from schemas.units import reader

M = TypeVar("M", bound=BaseModel)


def load(
    model: type[M],
    *,
    text: str = "",
    source: str = "the configuration",
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    prefix: str = "PUNA_",
    aliases: Aliases | None = None,
    stored: Mapping[str, Any] | None = None,
) -> M:
    """Settings of type `model`. `source` names the file for messages; one that ends in `.toml` is TOML. `overrides` is
    nested, `None` means not given. `stored` counts more than the file and less than the environment.

    Raises `ConfigError`.
    """
    lines: dict[Path, int] = {}
    aliases = aliases or Aliases()
    from_file = read_text(text, source, environ or {}, lines)
    variables = from_environment(model, environ or {}, prefix, aliases.in_environment)
    merged: dict[str, Any] = {}
    for layer in (from_file, stored or {}, variables, _without_none(overrides or {})):
        merged = _merge(merged, aliases.applied(layer, merged, _keys(model)))
    _alias_lines(aliases, lines)
    try:
        return model.model_validate(_read_units(model, merged))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, source, lines, item) for item in error.errors())) from error


def words(value: Any) -> Any:
    """For pydantic's `BeforeValidator`: a list may be one text with commas, as in an environment variable."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def from_environment(
    model: type[BaseModel], environ: Mapping[str, str], prefix: str = "PUNA_", more: Iterable[str] = ()
) -> dict[str, Any]:
    """What the environment says of the model's fields, and of `more` keys. Variables that name none of them belong to
    somebody else."""
    out: dict[str, Any] = {}
    known = {*_keys(model), *more}
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


def _read_units(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with text such as `15s` and `10M` read where the field's name ends with a unit."""
    fields = {key: (name, spec) for name, spec in model.model_fields.items() for key in _names_of(name, spec)}

    def read(key: str, value: Any) -> Any:
        if key not in fields:
            return value
        name, spec = fields[key]
        inner, unit = _model_in(spec.annotation), reader(name)
        if inner is not None:
            return _each(value, lambda below: _read_units(inner, below))
        return _each(value, lambda below: {k: unit(v) for k, v in below.items()}, unit) if unit else value

    return {key: read(key, value) for key, value in values.items()}


def _each(value: Any, of_mapping: Callable[[dict[str, Any]], Any], of_other: Callable[[Any], Any] | None = None) -> Any:
    """`of_mapping` of a mapping, of each in a list, and `of_other` of anything else."""
    if isinstance(value, Mapping):
        return of_mapping(cast(dict[str, Any], value))
    if isinstance(value, list):
        return [_each(each, of_mapping, of_other) for each in cast(list[Any], value)]
    return of_other(value) if of_other else value


def _explain(model: type[BaseModel], source: str, lines: Mapping[Path, int], item: Mapping[str, Any]) -> str:
    path = cast(Path, tuple(item["loc"]))
    where = place(source, path, lines)
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg']}"
    near = difflib.get_close_matches(str(path[-1]), _keys_at(model, path[:-1]), n=1)
    return f"{where}: no such key" + (f"; did you mean {near[0]!r}?" if near else "")


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
    return [key for name, spec in model.model_fields.items() for key in _names_of(name, spec)]


def _names_of(name: str, spec: FieldInfo) -> list[str]:
    choices = getattr(spec.validation_alias, "choices", [spec.validation_alias])
    return [name, *(choice for choice in choices if isinstance(choice, str) and choice != name)]


def _alias_lines(aliases: Aliases, lines: dict[Path, int]) -> None:
    """A value that was given under another name stands where that name does."""
    for name, alias in aliases.names.items():
        for written in (name, name.replace("_", "-")):
            if (written,) in lines:
                lines.setdefault(alias.path, lines[(written,)])
