"""The examples of docs/wire.md are what the code takes and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from schemas.model import CopyRecord, ModelRecord
from schemas.subjects import Names
from schemas.task import TASK_KINDS, TASK_MOVES, DeadTask, read_task

WIRE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
TASKS = re.findall(r"^nats pub (puna\.task\.\S+) '(.*)'$", WIRE, re.MULTILINE)
HEX = "a" * 64


@pytest.mark.parametrize(("subject", "body"), TASKS)
def test_a_task_is_taken_as_it_is_written(subject: str, body: str) -> None:
    op, _ = Names().task_parts(subject)
    assert read_task(op, body.replace("sha256:…", f"sha256:{HEX}").encode()).id


def test_every_operation_and_state_is_described() -> None:
    assert len(TASKS) >= 4
    assert [op for op in TASK_KINDS if f"| `{op}` |" not in WIRE] == []
    assert [state for state in TASK_MOVES if f"`{state}`" not in WIRE] == []
    fields = TASK_KINDS["download"].model_fields.keys() - {"id", "model"}
    row = next(line for line in WIRE.splitlines() if line.startswith("| `download` |"))
    assert [field for field in fields if f"`{field}`" not in row] == []


def test_a_record_and_a_copy_are_read_as_they_are_written() -> None:
    [record] = re.findall(r"^nats kv put puna_models chat '(.*?)'$", WIRE, re.MULTILINE | re.DOTALL)
    assert ModelRecord.model_validate(json.loads(record)).placement.copies == 2
    copies = [each for each in _objects() if "since" in each]
    assert [CopyRecord.model_validate(each).state for each in copies] == ["Downloading"]


def test_a_dead_letter_is_read_as_it_is_written() -> None:
    [letter] = [DeadTask.model_validate(each) for each in _objects() if "attempts" in each]
    assert letter.code == "unknown_field"


def _objects() -> list[dict[str, object]]:
    """The JSON objects that stand alone in a block."""
    blocks = re.findall(r"^```\n(\{.*?\})\n```$", WIRE, re.MULTILINE | re.DOTALL)
    return [json.loads(block) for block in blocks]
