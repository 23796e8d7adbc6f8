"""A store over a small real source: see tests/fakes/storehouse.py."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def storehouse(fake: Callable[[str], ModuleType]) -> ModuleType:
    return fake("storehouse")


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for tests of very many steps, each of which is synced."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def shelf(storehouse: ModuleType) -> Any:
    return storehouse.shelf()


@pytest.fixture
async def new_house(tmp_path: Path, storehouse: ModuleType, shelf: Any) -> AsyncIterator[Callable[..., Any]]:
    """`await new_house(settings=None, root=None, **options)` → an open store with its copies; again over the same
    folder, as a later worker."""
    made: list[Any] = []

    async def make(settings: Any = None, root: Path | None = None, **options: Any) -> Any:
        house = storehouse.House(root or tmp_path / "store", options.pop("shelf", shelf), settings, **options)
        made.append(house)
        return await house.open()

    yield make
    for house in made:
        await house.copies.stop()
