"""A process that is killed loses next to nothing, and what it left is right."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.transfer.intervals import Intervals
from worker.transfer.journal import Identity, Journal, boot_id, read

MB = 1 << 20
ROOT = Path(__file__).parents[3]
CHILD = """
import asyncio, json, sys
from pathlib import Path
import uvloop
from worker.sources import Digest, RemoteFile, Signed
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Part
from worker.transfer.settings import DownloadSettings

async def main(url, size, sha256, folder, settings):
    told = []
    async def sign():
        return Signed(url)
    file = RemoteFile("m.gguf", url, int(size), Digest("sha256", sha256))
    part = Part(Path(folder) / "data", Path(folder) / "journal")
    def on_bytes(count):
        told.append(count)
        print(sum(told), flush=True)
    fetcher = Fetcher(DownloadSettings(**json.loads(settings)))
    print((await fetcher.fetch(file, sign, part, on_bytes)).sha256, flush=True)

uvloop.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("threshold", [MB, 1 << 40], ids=["in ranges", "in one"])
def test_a_process_that_is_killed_again_and_again_has_hardly_anything_sent_twice(site, threshold):
    size, kills, dice = 96 * MB, 6, random.Random(7)
    file = site.file("m.gguf", size)
    site.contents.clear()
    site.server.fault("throttle", bytes_per_s=40 * MB)
    settings = json.dumps({"multipart_threshold_bytes": threshold, "piece_bytes": 8 * MB})
    argv = [sys.executable, "-c", CHILD, file.url, str(size), file.digest.hex, str(site.part.data.parent), settings]
    at, losses, sent = 0, [], 0
    for round_ in range(kills + 1):
        child = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        goal = (round_ + dice.random()) * size / (kills + 1)
        line = ""
        for line in child.stdout:
            if round_ < kills and len(line) < 20 and int(line) >= goal:
                break
        if round_ == kills:
            assert line.strip() == file.digest.hex
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        now = _settled(site)
        held = read(site.part.journal, boot_id()).done.size
        losses.append(now - sent - (held - at))
        at, sent = held, now
    assert hashlib.sha256(site.part.data.read_bytes()).hexdigest() == file.digest.hex
    print("sent again at each kill, MiB:", [round(each / MB, 2) for each in losses])
    assert sum(losses) <= kills * size / 100
    assert max(losses) <= size / 40


def _settled(site) -> int:
    """What was sent, when the server has seen that its client is gone."""
    before, now = -1, site.sent
    while before != now:
        time.sleep(0.1)
        before, now = now, site.sent
    return now


def test_what_a_frozen_process_holds_is_less_than_a_hundredth_of_the_file(site):
    """The most that a kill can cost: all memory, and all that the system takes for it, is full."""
    size = 256 * MB
    file = site.file("m.gguf", size)
    site.contents.clear()
    site.server.fault("throttle", bytes_per_s=100 * MB)
    argv = [sys.executable, "-c", CHILD, file.url, str(size), file.digest.hex, str(site.part.data.parent), "{}"]
    child = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if int(line) > size // 4:
            break
    os.kill(child.pid, signal.SIGSTOP)
    sent, held = _settled(site), read(site.part.journal, boot_id()).done.size
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    # the server's own buffers, which are small, count too
    assert sent - held <= size / 100


def test_after_a_power_failure_only_what_was_synced_counts(tmp_path):
    path = tmp_path / "journal"
    journal = Journal.begin(path, Identity(100, None, '"a"'), Intervals(), synced=False)
    journal.written(0, 10)
    journal.synced(Intervals([(0, 10)]))
    journal.written(10, 50)
    journal.close()
    assert list(read(path, boot_id()).done) == [(0, 50)]
    assert list(read(path, "another run of the machine").done) == [(0, 10)]
    assert list(read(path, None).done) == [(0, 10)]


def test_a_torn_journal_counts_as_far_as_it_is_whole(tmp_path):
    path = tmp_path / "journal"
    journal = Journal.begin(path, Identity(100, None), Intervals([(0, 5)]), synced=False)
    journal.written(10, 50)
    journal.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found = read(path, boot_id())
        assert found is None or list(found.done) in ([], [(0, 5)], [(0, 5), (10, 50)])
        path.write_bytes(whole[:cut] + b"\0\xff garbage")
        read(path, boot_id())


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"[]\n", b"1\n", b'{"journal":1}\n', b'{"journal":2,"size":1}\n', b"\xff" * 99]
)
def test_what_is_no_journal_counts_as_none(tmp_path, text):
    (tmp_path / "journal").write_bytes(text)
    assert read(tmp_path / "journal", boot_id()) is None
    assert read(tmp_path / "none", boot_id()) is None
