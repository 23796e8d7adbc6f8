"""What a serving program does around its server: run on uvloop, say where it listens, end with its parent."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

PARENT_CHECK_S: Final = 0.25


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run the program's one coroutine to its exit code, on uvloop where there is one."""
    if sys.platform == "win32":
        return asyncio.run(work)
    import uvloop

    return uvloop.run(work)


def announce(facts: Mapping[str, Any], file: Path | None = None) -> None:
    """The program takes requests now: `facts` as one JSON line into `file`, never half of it, then to stdout."""
    import orjson

    line = orjson.dumps(facts) + b"\n"
    if file is not None:
        fresh = file.with_name(f"{file.name}.{os.getpid()}")
        fresh.write_bytes(line)
        fresh.replace(file)
    sys.stdout.write(line.decode())
    sys.stdout.flush()


async def outlived(pid: int) -> None:
    """Until the process `pid` has ended. It need be no child of ours; a zombie counts as ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  it is no child of ours
            await asyncio.sleep(PARENT_CHECK_S)
    except psutil.NoSuchProcess:
        return
