"""Engines of an earlier life are ended, and nobody else's process ever is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from worker.minder import TAG_VARIABLE
from worker.orphans import Note, Notebook

SLEEP = (sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)")
GONE = 4_194_303
"""A pid above what this kernel gives out."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(SLEEP, stdout=subprocess.PIPE, text=True, env={TAG_VARIABLE: "tag-1"})
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def note(process: subprocess.Popen[str], **changes: object) -> Note:
    mine = Note.of(process.pid, "tag-1", 30000)
    assert mine is not None
    return replace(mine, worker_pid=GONE, **changes)


def alive(process: subprocess.Popen[str]) -> bool:
    return psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE


def test_an_engine_whose_worker_is_gone_is_ended(tmp_path: Path, sleeper: subprocess.Popen[str]) -> None:
    Notebook(tmp_path).write("e0", note(sleeper))
    assert Notebook(tmp_path).reap() == [sleeper.pid]
    assert not psutil.pid_exists(sleeper.pid) or not alive(sleeper)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_a_living_worker_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[str]) -> None:
    mine = Note.of(sleeper.pid, "tag-1", 30000)
    assert mine is not None
    Notebook(tmp_path).write("e0", mine)
    assert Notebook(tmp_path).reap() == []
    assert alive(sleeper)
    assert (tmp_path / "e0.engine").exists()


def test_a_stranger_under_the_same_pid_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[str]) -> None:
    earlier = note(sleeper).started_at - 100
    Notebook(tmp_path).write("e0", note(sleeper, started_at=earlier, tag="another"))
    assert Notebook(tmp_path).reap() == []
    assert alive(sleeper)


def test_what_a_gone_engine_left_behind_is_found_by_its_tag(tmp_path: Path, sleeper: subprocess.Popen[str]) -> None:
    Notebook(tmp_path).write("e0", note(sleeper, pid=GONE))
    assert Notebook(tmp_path).reap() == [sleeper.pid]


def test_a_worker_pid_that_was_given_to_another_does_not_protect(
    tmp_path: Path, sleeper: subprocess.Popen[str]
) -> None:
    mine = Note.of(sleeper.pid, "tag-1", 30000)
    assert mine is not None
    Notebook(tmp_path).write("e0", replace(mine, worker_started_at=1.0))
    assert Notebook(tmp_path).reap() == [sleeper.pid]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"pid": 1}'])
def test_a_note_that_cannot_be_read_harms_nobody_and_goes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e0.engine").write_bytes(content)
    assert Notebook(tmp_path).reap() == []
    assert not (tmp_path / "e0.engine").exists()


def test_a_folder_that_is_not_there_holds_no_orphans(tmp_path: Path) -> None:
    assert Notebook(tmp_path / "none").reap() == []
    Notebook(tmp_path / "none").erase("e0")
