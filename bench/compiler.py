"""The bench's own C programs, compiled at first use. Nothing else of the product needs a compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent / "native"
COMPILERS: Final = ("cc", "gcc", "clang")
FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11")


class CompilerMissing(Exception):
    """No C compiler, or it refused. The message says what to do."""


def native(name: str) -> Path:
    """The program compiled from `bench/native/<name>.c`, made anew if its source changed. Raises `CompilerMissing`."""
    source, program = SOURCES / f"{name}.c", SOURCES / "bin" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        _compile(source, program)
    return program


def _compile(source: Path, program: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise CompilerMissing(
            "the overhead bench's engine and client are C programs and there is no C compiler here: install one "
            "(Debian, Ubuntu: apt-get install gcc libc6-dev; Fedora: dnf install gcc). Nothing else needs it."
        )
    program.parent.mkdir(parents=True, exist_ok=True)
    made = program.with_suffix(".new")
    run = subprocess.run([compiler, *FLAGS, "-o", made, source], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise CompilerMissing(f"{compiler} could not compile {source.name} (it needs Linux):\n{run.stderr}")
    made.replace(program)
