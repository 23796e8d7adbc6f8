"""Ours in `bench.download.resume`: source and fetcher, one file. `python -m bench.download.ours REPO FILE DIR`"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from schemas.source import parse_source
from worker.sources import Signed, Want, find_source
from worker.sources.secrets import NodeSecrets
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Part
from worker.transfer.settings import DownloadSettings


async def fetch(repository: str, name: str, folder: Path) -> None:
    """Have the file at `folder/out`; what an earlier process brought is used."""
    source, secrets = find_source("hf"), NodeSecrets(folder)
    want = Want(parse_source(f"hf://{repository}#{name}"))
    listing = await source.resolve(want.ref, want=want, secrets=secrets)
    file, part = listing.file(name), Part(folder / "data", folder / "journal")

    async def sign() -> Signed:
        return await source.requests(file, want=want, secrets=secrets)

    fetcher = Fetcher(DownloadSettings())
    await fetcher.fetch(file, sign, part, lambda _: None, source="hf")
    fetcher.close()
    part.data.rename(folder / "out")


if __name__ == "__main__":
    asyncio.run(fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
