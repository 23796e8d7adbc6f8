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
def test_a_process_killed_ten_times_has_hardly_anything_sent_again(site, tmp_path, threshold):
    size, dice = 160 * MB, random.Random(7)
    file = site.file("m.gguf", size)
    site.contents.clear()
    site.server.fault("throttle", bytes_per_s=40 * MB)
    settings = json.dumps({"multipart_threshold_bytes": threshold, "piece_bytes": 8 * MB})
    argv = [sys.executable, "-c", CHILD, file.url, str(size), file.digest.hex, str(site.part.data.parent), settings]
    at, losses, sent = 0, [], 0
    for round_ in range(11):
        child = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        goal = (round_ + dice.random()) * size / 11
        line = ""
        for line in child.stdout:
            if round_ < 10 and len(line) < 20 and int(line) >= goal:
                break
        if round_ == 10:
            assert line.strip() == file.digest.hex
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        time.sleep(0.1)
        now = site.sent
        held = read(site.part.journal, boot_id()).done.size
        losses.append(now - sent - (held - at))
        at, sent = held, now
    assert hashlib.sha256(site.part.data.read_bytes()).hexdigest() == file.digest.hex
    print("sent again at each kill, MiB:", [round(each / MB, 2) for each in losses])
    assert max(losses) <= 8 * MB


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
