"""Desired state as people write it: YAML, one document a model, the fields of `schemas.model.ModelRecord`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gateway.cli.exits import USAGE, CliError
from schemas.model import ModelRecord

OURS: Final = ("generation", "deleting", "restored")
"""Fields that are written by commands, not by people."""
Path = tuple[str | int, ...]


def read_specs(text: str, source: str) -> list[ModelRecord]:
    """The models that a file wants, in its order. Raises `CliError`, which names each wrong field and its line."""
    found: list[ModelRecord] = []
    problems: list[str] = []
    for root, data in _documents(text, source):
        lines: dict[Path, int] = {}
        _note_lines(root, (), lines)
        try:
            found.append(_record(data, source, lines))
        except CliError as error:
            problems.append(error.message)
    names = [record.model for record in found]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        problems.append(f"{source}: model {doubled!r} is there twice")
    if not found and not problems:
        problems.append(f"{source}: it holds no model; write `model:` and `source:`, or see `puna model get -o yaml`")
    if problems:
        raise CliError("\n".join(problems), USAGE)
    return found


def spec_of(record: ModelRecord) -> dict[str, Any]:
    """What to write so that `read_specs` gives the record again: only what is not the default."""
    return record.model_dump(mode="json", exclude_defaults=True, exclude=set(OURS))


def written(records: Sequence[ModelRecord]) -> str:
    """YAML of the records, one document each."""
    return yaml.safe_dump_all([spec_of(record) for record in records], sort_keys=False, allow_unicode=True)


def _documents(text: str, source: str) -> list[tuple[yaml.Node, Any]]:
    """Each document as nodes, which know their lines, and as data."""
    try:
        roots: list[Any] = [*yaml.compose_all(text, Loader=yaml.SafeLoader)]
        found: list[Any] = [*yaml.safe_load_all(text)]
    except yaml.YAMLError as error:
        raise CliError(f"{source}: not YAML: {' '.join(str(error).split())}", USAGE) from error
    return [(root, data) for root, data in zip(roots, found, strict=True) if root is not None and data is not None]


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in cast("list[tuple[Any, yaml.Node]]", node.value):
            inner = (*path, str(key.value))
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(cast("list[yaml.Node]", node.value)):
            _note_lines(value, (*path, index), lines)


def _record(data: Any, source: str, lines: Mapping[Path, int]) -> ModelRecord:
    if not isinstance(data, dict):
        raise CliError(f"{source}:{lines.get((), 1)}: a model is a mapping; write `model:` and `source:` lines", USAGE)
    given = {str(key): value for key, value in cast("dict[Any, Any]", data).items() if key not in OURS}
    try:
        return ModelRecord.model_validate(given)
    except ValidationError as error:
        told = [_explained(item, source, lines) for item in error.errors(include_url=False, include_input=False)]
        raise CliError("\n".join(told), USAGE) from error


def _explained(item: Mapping[str, Any], source: str, lines: Mapping[Path, int]) -> str:
    path = cast(Path, tuple(item["loc"]))
    known = path
    while known and known not in lines:
        known = known[:-1]
    place = f"{source}:{lines.get(known, 1)}: {'.'.join(map(str, path)) or 'the document'}"
    if item["type"] == "missing":
        return f"{place}: it is missing"
    if item["type"] != "extra_forbidden":
        return f"{place}: {str(item['msg']).removeprefix('Value error, ')}"
    fields = _fields_at(path[:-1])
    near = difflib.get_close_matches(str(path[-1]), fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(fields)}"
    return f"{place}: no such field; {hint}"


def _fields_at(path: Path) -> list[str]:
    current: Any = ModelRecord
    for part in path:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if current is not None else None
        current = _model_in(field.annotation) if field is not None else None
    return [name for name in current.model_fields if name not in OURS] if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)
