"""`puna model apply|get|edit|delete`: desired state in its bucket, written by compare-and-set."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from gateway.cli.exits import FAILURE, NOT_FOUND, OK, USAGE, CliError
from gateway.cli.following import standing
from gateway.cli.nodes import connected
from gateway.cli.records import entries
from gateway.cli.say import Teller
from gateway.cli.spec import read_specs, spec_of, written
from gateway.cli.tables import Format, show
from gateway.cli.target import Target
from schemas.model import ModelRecord
from schemas.subjects import encode

if TYPE_CHECKING:
    from bus.connection import Bus
    from bus.kv import Bucket

_COLUMNS: Final = ("model", "result", "generation", "copies", "source")
_TRIES: Final = 10
_STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one wish."""

    record: ModelRecord
    result: str

    def data(self) -> dict[str, Any]:
        """For programs."""
        return {"model": self.record.model, "result": self.result, "record": self.record.model_dump(mode="json")}

    def row(self) -> dict[str, Any]:
        """For people."""
        record = self.record
        shown = {"generation": record.generation, "copies": record.placement.copies, "source": record.source}
        return {"model": record.model, "result": self.result, **shown}


async def run_apply(target: Target, files: Sequence[str], how: Format) -> int:
    """`puna model apply`. All files are read and checked before the first record is written."""
    wishes = [record for file in files for record in read_specs(*_text_of(file))]
    names = [record.model for record in wishes]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise CliError(f"model {doubled!r} is in several files", USAGE)
    async with connected(target.nats_settings()) as bus:
        await standing(bus)
        applied = [await apply(bus, record) for record in wishes]
    show([one.data() for one in applied], [one.row() for one in applied], _COLUMNS, _COLUMNS, how)
    return OK


def _text_of(file: str) -> tuple[str, str]:
    if file == _STDIN:
        return sys.stdin.read(), "standard input"
    try:
        return Path(file).read_text(encoding="utf-8"), file
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{file}: {getattr(error, 'strerror', None) or 'it is no text'}", USAGE) from error


async def apply(bus: Bus, wish: ModelRecord, *, over: int | None = None) -> Applied:
    """Make this the model's record. `over`: only if the record's revision is this one still. Raises `CliError`."""
    from bus.kv import Bucket, WrongRevision

    bucket = Bucket(bus, bus.names.bucket_models)
    for _ in range(_TRIES):
        before, revision = await _stored(bucket, wish.model)
        if over is not None and revision != over:
            raise CliError(f"{wish.model} was changed by somebody else meanwhile; look at it and try again")
        generation = before.generation if before is not None else 0
        if before is not None and not before.deleting and spec_of(before) == spec_of(wish):
            return Applied(before, "unchanged")
        record = wish.model_copy(update={"generation": generation + 1, "deleting": False})
        try:
            await _write(bucket, record, revision)
        except WrongRevision:
            continue
        told = "created" if before is None else "wanted again" if before.deleting else "changed"
        return Applied(record, told)
    raise CliError(f"{wish.model} is changed by somebody else all the time; try again")


async def _stored(bucket: Bucket, model: str) -> tuple[ModelRecord | None, int]:
    """The record, if it can be read, and its revision; 0: there is none."""
    entry = await bucket.get(encode(model))
    if entry is None:
        return None, 0
    try:
        return ModelRecord.model_validate_json(entry.value), entry.revision
    except ValidationError:
        return None, entry.revision


async def _write(bucket: Bucket, record: ModelRecord, revision: int) -> None:
    value = record.model_dump_json(exclude_none=True).encode()
    if revision:
        await bucket.update(encode(record.model), value, last=revision)
    else:
        await bucket.create(encode(record.model), value)


async def run_get(target: Target, models: Sequence[str], how: Format) -> int:
    """`puna model get`: as it may be applied again."""
    async with connected(target.nats_settings()) as bus:
        found = await _records(bus)
    missing = [model for model in models if model not in found]
    if missing:
        raise CliError(f"there is no record of {', '.join(missing)}; `puna model get` lists what there is", NOT_FOUND)
    chosen = [found[model] for model in models] if models else list(found.values())
    if not chosen and how is not Format.JSON:
        Teller().line("no model is wanted by a record; `puna model apply -f FILE` makes one, `puna pull` needs none")
    elif how is Format.JSON:
        show([record.model_dump(mode="json") for record in chosen], [], (), (), how)
    elif how is Format.YAML or models:
        print(written(chosen), end="")
    else:
        rows = [Applied(record, "deleting" if record.deleting else "wanted").row() for record in chosen]
        columns = ("model", "state", *_COLUMNS[2:])
        show([], [row | {"state": row["result"]} for row in rows], columns, columns, how)
    return OK


async def _records(bus: Bus) -> dict[str, ModelRecord]:
    found: dict[str, ModelRecord] = {}
    for entry in (await entries(bus, bus.names.bucket_models)).values():
        try:
            record = ModelRecord.model_validate_json(entry.value)
        except ValidationError as error:
            Teller().line(f"puna: the record under {entry.key} cannot be read: {error.errors()[0]['msg']}")
            continue
        found[record.model] = record
    return dict(sorted(found.items()))


async def run_edit(target: Target, model: str, how: Format) -> int:
    """`puna model edit`: the record in an editor; a mistake opens it again, with what is wrong above it."""
    from bus.kv import Bucket

    if not sys.stdin.isatty():
        raise CliError("edit needs a terminal; use `puna model get MODEL > spec.yaml` and `puna model apply -f`", USAGE)
    async with connected(target.nats_settings()) as bus:
        before, revision = await _stored(Bucket(bus, bus.names.bucket_models), model)
        if before is None:
            raise CliError(f"there is no record of {model}; `puna model apply -f FILE` makes one", NOT_FOUND)
        wish = await asyncio.to_thread(_edited, before)
        if wish is None:
            Teller().line("nothing was changed")
            return OK
        applied = await apply(bus, wish, over=revision)
    show([applied.data()], [applied.row()], _COLUMNS, _COLUMNS, how)
    return OK


def _edited(before: ModelRecord) -> ModelRecord | None:
    """What came out of the editor; None if it is what went in. Raises `CliError`."""
    original = text = written([before])
    while True:
        text = _in_editor(text)
        kept = "\n".join(line for line in text.splitlines() if not line.startswith("# puna: ")) + "\n"
        if kept.strip() in ("", original.strip()):
            return None
        try:
            specs = read_specs(kept, "the record")
            if len(specs) != 1 or specs[0].model != before.model:
                raise CliError(f"edit keeps to one model, {before.model}; another name is another record")
            return specs[0]
        except CliError as error:
            notes = "".join(f"# puna: {line}\n" for line in error.message.splitlines())
            if f"{notes}{kept}" == text:
                raise
            text = f"{notes}{kept}"


def _in_editor(text: str) -> str:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="puna-") as folder:
        file = Path(folder) / "model.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except OSError as error:
            raise CliError(f"editor {editor!r} cannot be run ({error.strerror}); set EDITOR", USAGE) from error
        if done.returncode != 0:
            raise CliError(f"the editor ended with {done.returncode}; nothing was changed")
        return file.read_text(encoding="utf-8")


async def run_delete(target: Target, models: Sequence[str], how: Format, *, retain: bool) -> int:
    """`puna model delete`: a tombstone; every node takes its copy away, and the record goes when none is left."""
    from bus.kv import Bucket

    async with connected(target.nats_settings()) as bus:
        bucket = Bucket(bus, bus.names.bucket_models)
        known = await _records(bus)
        missing = [model for model in models if model not in known]
        if missing:
            text = f"there is no record of {', '.join(missing)}; `puna rm` takes away copies that no record wants"
            raise CliError(text, NOT_FOUND)
        buried = [await _bury(bucket, model, retain=retain) for model in models]
    show([one.data() for one in buried], [one.row() for one in buried], _COLUMNS, _COLUMNS, how)
    return OK if all(one.result == "deleting" for one in buried) else FAILURE


async def _bury(bucket: Bucket, model: str, *, retain: bool) -> Applied:
    from bus.kv import WrongRevision

    for _ in range(_TRIES):
        before, revision = await _stored(bucket, model)
        if before is None:
            raise CliError(f"there is no record of {model} any more", NOT_FOUND)
        if before.deleting:
            return Applied(before, "deleting")
        changes = {"deleting": True, "retain": retain or before.retain, "generation": before.generation + 1}
        record = before.model_copy(update=changes)
        try:
            await _write(bucket, record, revision)
        except WrongRevision:
            continue
        return Applied(record, "deleting")
    raise CliError(f"{model} is changed by somebody else all the time; try again")
