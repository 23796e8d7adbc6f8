"""What `bench.download` counts is what was sent, and what it says of memory and speed is of a file that is whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest


def _told(*argv: str) -> Any:
    argv = (sys.executable, "-m", "bench.download", *argv, "--json")
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def test_a_killed_download_is_counted_for_both_ways() -> None:
    library, puna = _told("resume", "--mib", "24", "--mib-per-s", "16", "--kills", "0.5")
    assert library["right"]
    assert puna["right"]
    assert library["again"] > 0.4
    assert puna["again"] < 0.1
    assert puna["a_restart"] == puna["again"]


def test_memory_does_not_follow_the_size_of_a_file() -> None:
    small, large = _told("single", "--sizes", "16,256")
    assert large["megabytes"] == 16 * small["megabytes"]
    assert large["growth_bytes"] - small["growth_bytes"] < 32 << 20


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_a_ratio_to_curl_is_made_of_both() -> None:
    (found,) = _told("throughput", "--sizes", "20", "--rounds", "2")
    assert found["megabytes"] == 20
    assert found["to_curl"] > 0
    assert found["puna_mb_per_s"] > 0
