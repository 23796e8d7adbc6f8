"""What `bench.download.resume` counts is what was sent."""

from __future__ import annotations

import json
import subprocess
import sys


def test_a_killed_download_is_counted_for_both_ways() -> None:
    argv = [
        sys.executable,
        "-m",
        "bench.download.resume",
        "--mib",
        "24",
        "--mib-per-s",
        "16",
        "--kills",
        "0.5",
        "--json",
    ]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    library, puna = json.loads(done.stdout)
    assert library["right"]
    assert puna["right"]
    assert library["again"] > 0.4
    assert puna["again"] < 0.1
