"""Writes docs/configuration.md from the settings themselves: `python docs/generate_configuration.py`.

A test fails when the page is not what this writes.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"

HEAD = """# Configuration

Generated from the settings by `docs/generate_configuration.py`; do not edit.

Each service reads a file (`--config`; YAML, or TOML where its name ends in `.toml`), the environment and its command
line. The command line wins over the environment, the environment over the file, the file over the default. In the
environment a key is `PUNA_` and its name in upper case, with `__` between levels: `PUNA_HTTP__LISTEN`. Lists and
mappings are given as JSON there. In the file `${env.NAME}` stands for a variable and fails when it is not set. A wrong
key or value is named with file and line. `NATS_URL` and `NATS_CONTEXT` (a context of the `nats` command line) are
honoured too, and `POD_NAMESPACE` as `nats.prefix`.

A time is a number of seconds (`…_ms`: milliseconds), or has its unit: `15s`, `10m`, `1h30m`. A size is a number of
bytes, or `10M`, `200MB`, `8GiB`: powers of 1024, however it is written.
"""

STORED = """## Settings of a node that are kept in NATS

A worker looks for its node's id in the KV bucket `puna_config` when it starts. What is there, YAML or JSON as in its
file, counts more than the file and less than the environment:

```
nats kv put puna_config gpu-1 '{"downloads": {"num_download_worker": 2, "bytes_per_s": "50M"}}'
```

Characters of the id outside `A-Z a-z 0-9 _ -` are written `=XX` in the key, as everywhere ([wire.md](wire.md)). `node`,
`nats`, `http`, `models`, `secrets`, `state_dir`, and every path and secret can only be set on the node itself. If
anything there is wrong or not allowed, nothing of it is taken: the worker starts as its file says, and its log has
`stored_settings_refused` with the reason. `puna.node.<node>.config` tells the settings that are in force.
"""
OTHERS = """## Names of other node agents

A worker's settings may stand at the top level of its file, or in `PUNA_…` variables, under the names that users of
other agents know, with `_` or `-`.

| name | setting |
|---|---|
"""
IDLE_HEAD = """
These are accepted and do nothing; the worker's log says so.

| name | why |
|---|---|
"""


def page() -> str:
    """The whole page."""
    from gateway.settings import GatewaySettings
    from worker.settings import WorkerSettings

    parts = [HEAD, "## Worker", table(WorkerSettings), "## Gateway", table(GatewaySettings), STORED, other_names()]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def other_names() -> str:
    """The names that a worker's settings have elsewhere."""
    from worker.aliases import IDLE, NAMES

    names = [f"| `{name}` | `{'.'.join(alias.path)}` |\n" for name, alias in NAMES.items()]
    idle = [f"| `{name}` | {why} |\n" for name, why in IDLE.items()]
    return "".join([OTHERS, *names, IDLE_HEAD, *idle])


def table(model: type[BaseModel]) -> str:
    """All keys of a settings model, nested ones with their path."""
    lines = ["| key | type | default | |", "|---|---|---|---|", *rows(model, "")]
    return "\n".join(lines)


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """One line a key."""
    out: list[str] = []
    texts = docstrings(model)
    for name, field in model.model_fields.items():
        inner = inner_model(field.annotation)
        if inner is not None:
            is_list = get_origin(field.annotation) in (list, tuple)
            out += rows(inner, f"{prefix}{name}{'[]' if is_list else ''}.")
            continue
        text = cell(texts.get(name, ""))
        kind = unit_name(name) or type_name(field.annotation)
        out.append(f"| `{prefix}{name}` | {cell(kind)} | {cell(default(field))} | {text} |")
    return out


def cell(text: str) -> str:
    """Text that keeps to its column."""
    return " ".join(text.split()).replace("|", "\\|")


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The settings group behind an annotation, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [inner_model(each) for each in get_args(annotation)]
    return next((each for each in found if each is not None), None)


def unit_name(name: str) -> str:
    """Of a field that takes text with a unit."""
    from schemas.units import reader, size

    unit = reader(name)
    return "" if unit is None or name.startswith("per_source") else "size" if unit is size else "time"


def type_name(annotation: Any) -> str:
    """As a person would say it."""
    if annotation is SecretStr:
        return "secret text"
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    arguments = [each for each in get_args(annotation) if each is not type(None)]
    if annotation in (str, int, float, bool, Path):
        return {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}[annotation]
    if get_origin(annotation) in (list, tuple):
        return "list"
    if get_origin(annotation) is dict or getattr(get_origin(annotation), "__name__", "") == "Mapping":
        return "mapping"
    if arguments and all(isinstance(each, str) for each in arguments):
        return " or ".join(f"`{each}`" for each in arguments)
    return " or ".join(dict.fromkeys(type_name(each) for each in arguments)) or "text"


def default(field: FieldInfo) -> str:
    """The default as it stands in YAML; nothing for a key that is required or has none."""
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        made = field.default_factory() if field.default_factory in (list, dict) else None  # type: ignore[call-arg]
        return "" if made is None else str(made)
    value = field.default
    if value is None or value is PydanticUndefined or isinstance(value, SecretStr):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ("", (), []) else ""


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field, of the class and its bases."""
    out: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base is not BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for item, after in pairwise(statements):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(text, str):
                out[item.target.id] = text
    return out


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page())
