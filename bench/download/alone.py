"""One download by Puna in a process of its own: `python -m bench.download.alone URL BYTES SHA256 DIR` → one JSON line:
seconds from the first request to a file that is whole, checked and on the disk; CPU seconds; growth of peak memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import uvloop

from worker.sources import Digest, RemoteFile, Signed
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Part
from worker.transfer.settings import DownloadSettings


def peak_bytes() -> int:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


async def fetch(url: str, size: int, sha256: str, folder: Path) -> None:
    """Fetch and print."""

    async def sign() -> Signed:
        return Signed(url)

    fetcher = Fetcher(DownloadSettings())
    file = RemoteFile("model.gguf", url, size, Digest("sha256", sha256))
    before, began, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    await fetcher.fetch(file, sign, Part(folder / "data", folder / "journal"), lambda _: None)
    figures = {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "growth_bytes": peak_bytes() - before,
    }
    print(json.dumps(figures), flush=True)
    fetcher.close()


if __name__ == "__main__":
    uvloop.run(fetch(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
