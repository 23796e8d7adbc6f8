"""A worker that is killed at any step of any change: the next one finds old or new, and nothing that nobody needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "fakes" / "storehouse.py"
SHARES = 4


@pytest.mark.parametrize("share", range(SHARES))
def test_kill_at_every_step_of_the_disk_leaves_old_or_new_and_no_litter(tmp_path: Path, share: int) -> None:
    """About 260 steps, in shares."""
    first, last = share * 66, (share + 1) * 66 if share < SHARES - 1 else 1 << 30
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), str(first), str(last)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout)
    assert told["kills"] > 30
