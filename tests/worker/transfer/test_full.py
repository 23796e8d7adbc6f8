"""Disks that refuse: full in the middle, folders that cannot be used."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker.sources import DiskFailed, NoSpace
from worker.transfer.part import Part

MB = 1 << 20
SIZE = 6 * MB + 5
ROOT = Path(__file__).parents[3]


@contextmanager
def _room_for(bytes_: int) -> Iterator[None]:
    """No file of this process may be longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("threshold", [MB, 1 << 40], ids=["in ranges", "in one"])
async def test_a_disk_that_is_full_in_the_middle_is_told_and_with_room_it_goes_on(site, make_fetcher, threshold):
    file = site.file("model.gguf", SIZE)
    with _room_for(3 * MB), pytest.raises(NoSpace, match="no space left"):
        await site.fetch(make_fetcher(multipart_threshold_bytes=threshold), file)
    kept, sent = sum(site.told), site.sent
    site.told.clear()
    await site.fetch(make_fetcher(multipart_threshold_bytes=threshold), file)
    assert site.is_whole(file)
    assert 0 < site.told[0] <= 3 * MB
    assert site.sent - sent == SIZE - site.told[0]
    assert kept >= site.told[0]


@pytest.mark.parametrize("what", ["no folder", "a file for a folder", "data is a folder", "data is a link", "journal"])
async def test_a_part_that_cannot_be_written_is_told_with_its_path(site, fetcher, tmp_path, what):
    file = site.file("model.gguf", SIZE)
    folder, outside = tmp_path / "part", tmp_path / "outside"
    site.part = Part(folder / "data", folder / "journal")
    if what == "a file for a folder":
        folder.write_bytes(b"")
    elif what != "no folder":
        folder.mkdir()
    if what == "data is a folder":
        site.part.data.mkdir()
    if what == "data is a link":
        outside.write_bytes(b"mine")
        site.part.data.symlink_to(outside)
    if what == "journal":
        site.part.journal.mkdir()
    with pytest.raises(DiskFailed, match=str(folder)):
        await site.fetch(fetcher, file)
    assert not outside.exists() or outside.read_bytes() == b"mine"


CHILD = """
import asyncio, ctypes, sys
from pathlib import Path
from worker.sources import DiskFailed, RemoteFile, Signed
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Part
from worker.transfer.settings import DownloadSettings

async def main(url, size, folder):
    async def sign():
        return Signed(url)
    part = Part(Path(folder) / "data", Path(folder) / "journal")
    try:
        await Fetcher(DownloadSettings()).fetch(RemoteFile("m.gguf", url, int(size)), sign, part, lambda _: None)
    except DiskFailed as error:
        print(error)

# whoever runs the tests: no powers over files beyond those of their owner
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
asyncio.run(main(*sys.argv[1:4]))
"""


@pytest.mark.parametrize("mode", [0o000, 0o500, 0o300], ids=["closed", "unwritable", "unreadable"])
def test_a_folder_that_is_not_for_this_user_is_told(site, tmp_path, mode):
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "journal").write_text("{}")
    (folder / "journal").chmod(0o000)
    folder.chmod(mode)
    file = site.file("model.gguf", MB)
    argv = [sys.executable, "-c", CHILD, file.url, str(MB), str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    folder.chmod(0o700)
    assert "Permission denied" in done.stdout, done.stderr
    assert str(folder) in done.stdout
