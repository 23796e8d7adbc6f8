"""What a serving program does around its server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from web import program


def test_the_announcement_is_one_whole_line_on_stdout_and_in_the_file(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "state.json"
    file.write_text("old and longer than what comes now, much longer")
    program.announce({"pid": 7}, file)
    assert capsys.readouterr().out == file.read_text() == '{"pid":7}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    program.announce({"pid": 8})
    assert json.loads(capsys.readouterr().out) == {"pid": 8}


async def test_a_process_is_outlived_once_it_has_ended_and_was_not_even_collected() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    waiting = asyncio.create_task(program.outlived(child.pid))
    assert (await asyncio.wait([waiting], timeout=0.05))[0] == set()
    child.kill()
    async with asyncio.timeout(5):
        await waiting
        child.wait()
        await program.outlived(child.pid)
    assert child.stdin is not None
    child.stdin.close()


def test_the_exit_code_is_what_the_program_returns() -> None:
    async def work() -> int:
        return os.EX_UNAVAILABLE

    assert program.run(work()) == 69
