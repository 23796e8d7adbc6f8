"""The peer of `bench.download.resume`, huggingface_hub, with one file: `python -m bench.download.peer REPO FILE DIR`"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Fetch into the library's cache, and link it at `DIR/out`."""
    from huggingface_hub import (
        hf_hub_download,  # pyright: ignore[reportUnknownVariableType]  a dict of it is untyped
    )

    repository, file, folder = sys.argv[1:]
    path = hf_hub_download(repository, file)
    os.link(Path(path).resolve(), Path(folder) / "out")


if __name__ == "__main__":
    main()
