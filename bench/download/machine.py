"""What a measurement was made on: a line that stands with its figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path


def machine(folder: Path) -> str:
    """Cores, processor, system, the file system of the folder, and how busy the machine is now."""
    load = "/".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({_processor()}), {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {_file_system(folder)}, load {load}"
    )


def _processor() -> str:
    hit = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return hit[1].strip() if hit else platform.machine()


def _file_system(folder: Path) -> str:
    argv = ["stat", "--file-system", "--format", "%T", str(folder)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
