"""Programs of vendors: bounded in time and output, killed with all they started, not asked again at once."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from worker.accelerators.figures import number, parsed, size, text
from worker.accelerators.tool import RETRY_S, Tool, ToolFailed, output_of


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """A shell script with these lines."""

    def write(*lines: str) -> str:
        path = tmp_path / "script"
        path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_what_a_program_prints_is_its_answer(script: Any) -> None:
    assert output_of([script('echo "$1 $HI"', "echo no >&2"), "a"], 5, {"HI": "b"}) == "a b\n"


def test_a_program_that_hangs_is_killed_with_what_it_started(script: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ToolFailed, match=r"no answer in 0\.5 s"):
        output_of([script(f"/bin/sleep 60 & echo $! > {tmp_path}/pid; wait")], 0.5, {})
    assert time.monotonic() - started < 5
    psutil.wait_procs([psutil.Process(pid) for pid in _alive(tmp_path)], timeout=5)
    assert not _alive(tmp_path)


def _alive(folder: Path) -> list[int]:
    pid = int((folder / "pid").read_text())
    return [pid] if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []


def test_a_program_that_closes_its_output_and_stays_is_ended(script: Any) -> None:
    with pytest.raises(ToolFailed, match=r"did not end in 0\.5 s"):
        output_of([script("exec >&-", "/bin/sleep 60")], 0.5, {})


def test_output_without_end_is_cut(script: Any) -> None:
    with pytest.raises(ToolFailed, match="wrote more than"):
        output_of([script("exec /usr/bin/yes")], 20, {})


def test_a_failure_says_the_first_line(script: Any) -> None:
    with pytest.raises(ToolFailed, match="exit status 9: it is broken"):
        output_of([script("echo", "echo it is broken", "exit 9")], 5, {})


def test_what_cannot_be_run_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="cannot be run"):
        output_of([str(tmp_path)], 5, {})


def test_a_program_that_is_not_installed_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert Tool(("no-such-program-here",)).read() is None
    assert not caplog.records


def test_an_answer_serves_for_its_time_and_a_failure_is_not_repeated_at_once(
    script: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    tool = Tool((script(f"echo x >> {tmp_path}/count", f"/bin/cat {tmp_path}/answer"),), every_s=10, clock=lambda: now)

    def asked() -> int:
        return len((tmp_path / "count").read_text().split())

    (tmp_path / "answer").write_text("one")
    assert [tool.read(), tool.read(), asked()] == ["one", "one", 1]
    now = 10.0
    (tmp_path / "answer").unlink()
    assert [tool.read(), tool.read(), asked()] == [None, None, 2]
    now += RETRY_S
    (tmp_path / "answer").write_text("two")
    assert [tool.read(), asked()] == ["two", 3]
    assert [getattr(record, "event", "") for record in caplog.records] == ["tool_failed", "tool_back"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (45, 45), ("45 W", 45), ("4.44", 4.44), ({"value": 45, "unit": "W"}, 45), ("[N/A]", None), ("N/A", None),
        ("[Unknown Error]", None), (None, None), (True, None), ([], None), ({}, None), (float("nan"), None),
        ("1e999", None), ("9" * 100, None), ({"value": "N/A"}, None), ("²", None),
    ],
)  # fmt: skip
def test_numbers_are_read_in_all_their_forms(value: Any, found: float | None) -> None:
    assert number(value) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"value": 2, "unit": "MB"}, 2 << 20), ({"value": 5, "unit": "B"}, 5), ("16 GB", 16 << 30), (3, 3 << 20),
        ("-1", None), ("7 parsec", None), ("N/A", None),
    ],
)  # fmt: skip
def test_sizes_are_read_in_all_their_units(value: Any, found: int | None) -> None:
    assert size(value) == found


@pytest.mark.parametrize("document", [None, "", "{", "[1,", "WARNING: x", "[" * 100_000, "{\xff}"])
def test_what_is_no_json_is_nothing(document: str | None) -> None:
    assert parsed(document) is None


def test_json_after_warnings_is_read() -> None:
    assert parsed("WARNING: [x]\n[1]\ntrailing") == [1]


def test_words_are_cleaned() -> None:
    assert [text(each) for each in (b"A\x00B", " N/A ", "x" * 500, 5)] == ["AB", None, "x" * 200, None]
