"""What a node remembers of desired state, over files that may be missing, old or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.model import ModelRecord
from worker.desired.shelf import Noted, Shelf


def shelf(folder: Path) -> Shelf:
    made = Shelf(folder / "records" / "n1", folder / "state")
    made.open()
    return made


def record(model: str = "org/m:Q4", **fields: object) -> ModelRecord:
    told = {"model": model, "source": "hf://o/r", "profile": {"pinned": True}, "variants": [{"quant": "Q8_0"}]}
    return ModelRecord.model_validate(told | fields)


async def test_a_record_comes_back_whole(tmp_path: Path) -> None:
    await shelf(tmp_path).keep(record(), 7)
    assert shelf(tmp_path).noted == {"org/m:Q4": Noted(revision=7, record=record())}


async def test_a_newer_revision_of_the_same_record_is_noted_too(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    await first.keep(record(), 7)
    await first.keep(record(), 8)
    assert shelf(tmp_path).noted["org/m:Q4"].revision == 8


async def test_what_is_dropped_is_gone_and_may_be_dropped_again(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    await first.keep(record(), 1)
    await first.drop("org/m:Q4")
    await first.drop("org/m:Q4")
    assert shelf(tmp_path).noted == {}


async def test_the_bucket_and_the_nodes_are_remembered(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    assert first.bucket is None
    await first.remember("2026-01-01T00:00:00Z")
    await first.keep_nodes({"b": {"zone": "two"}})
    later = shelf(tmp_path)
    assert (later.bucket, later.nodes) == ("2026-01-01T00:00:00Z", {"b": {"zone": "two"}})


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"created": 1}', b"\xff"])
async def test_files_that_cannot_be_read_count_as_not_there(tmp_path: Path, text: bytes) -> None:
    first = shelf(tmp_path)
    await first.keep(record("good"), 1)
    await first.remember("then")
    (tmp_path / "state" / "bucket.json").write_bytes(text)
    (tmp_path / "state" / "nodes.json").write_bytes(text)
    (tmp_path / "records" / "n1" / "bad.json").write_bytes(text)
    (tmp_path / "records" / "n1" / "=XX.json").write_bytes(b"{}")
    later = shelf(tmp_path)
    assert list(later.noted) == ["good"]
    assert (later.bucket, later.nodes) == (None, {})


async def test_a_file_that_was_being_written_is_not_read(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    await first.keep(record("good"), 1)
    (tmp_path / "records" / "n1" / ".half.json.new").write_bytes(b"{")
    assert list(shelf(tmp_path).noted) == ["good"]
