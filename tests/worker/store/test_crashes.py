"""A worker that is killed at any step of any change: the next one finds old or new, and nothing that nobody needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "fakes" / "storehouse.py"
SHARES = 4
STRIDE = 3
"""Every third step here, in shares; all of them with the program itself."""


def walked(folder: Path, *given: object) -> int:
    """Returns how often a worker was killed."""
    argv = [sys.executable, str(PROGRAM), str(folder), *(str(each) for each in given)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)["kills"]


@pytest.mark.parametrize("share", range(SHARES))
def test_kill_at_every_step_of_the_disk_leaves_old_or_new_and_no_litter(memory_path: Path, share: int) -> None:
    """About 335 steps."""
    first, last = share * 84, (share + 1) * 84 if share < SHARES - 1 else 1 << 30
    assert walked(memory_path, first, last, "main", STRIDE) > 15


def test_kill_while_files_come_from_elsewhere_are_mended_or_cleared_leaves_nothing_half(memory_path: Path) -> None:
    """About 135 steps."""
    assert walked(memory_path, 1, 1 << 30, "beside", 2 * STRIDE) > 15
