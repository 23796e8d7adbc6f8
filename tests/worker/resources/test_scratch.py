"""Scratch folders: nothing outside is touched, nothing inside is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.scratch import Scratch, measure

MIB = 1 << 20


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "state" / "scratch")


def test_an_engine_has_an_empty_folder_that_only_its_user_enters(scratch: Scratch) -> None:
    folder = scratch.make("engine-0")
    (folder / "slot.bin").write_bytes(b"x")
    assert scratch.make("engine-0") == folder
    assert (list(folder.iterdir()), folder.stat().st_mode & 0o777) == ([], 0o700)


def test_what_an_engine_leaves_is_removed_whatever_its_permissions(scratch: Scratch) -> None:
    folder = scratch.make("engine-0")
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(b"x")
    for each in (inner, folder / "a"):
        each.chmod(0o500)
    assert scratch.remove("engine-0")
    assert not folder.exists()
    assert scratch.remove("engine-0")


def test_links_are_removed_and_not_followed(scratch: Scratch, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.gguf").write_bytes(b"x" * MIB)
    folder = scratch.make("engine-0")
    (folder / "link").symlink_to(outside)
    (folder / "file").symlink_to(outside / "model.gguf")
    (folder.parent / "engine-1").symlink_to(outside)
    assert scratch.size("engine-0").size_bytes < MIB
    assert scratch.clean(()) == ["engine-0", "engine-1"]
    assert [each.name for each in outside.iterdir()] == ["model.gguf"]
    assert list(folder.parent.iterdir()) == []


def test_leftovers_go_and_adopted_engines_keep_theirs(scratch: Scratch) -> None:
    assert scratch.clean(()) == []
    for name in ("engine-0", "engine-1"):
        scratch.make(name)
    assert scratch.clean({"engine-1"}) == ["engine-0"]
    assert scratch.folder("engine-1").is_dir()


def test_size_is_what_is_on_the_disk(scratch: Scratch) -> None:
    folder = scratch.make("engine-0")
    (folder / "deep").mkdir()
    (folder / "deep" / "a").write_bytes(os.urandom(2 * MIB))
    os.link(folder / "deep" / "a", folder / "same")
    with (folder / "hole").open("wb") as file:
        file.truncate(1 << 40)
    size = scratch.size("engine-0")
    assert 2 * MIB <= size.size_bytes < 3 * MIB
    assert (size.entries, size.whole) == (4, True)


def test_a_look_is_bounded(scratch: Scratch) -> None:
    folder = scratch.make("engine-0")
    for number in range(20):
        (folder / str(number)).mkdir()
    assert scratch.size("engine-0", limit=10).whole is False
    assert measure(folder / "gone").entries == 0
