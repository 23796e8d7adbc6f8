"""An origin that asks for quiet is left alone by all processes that share a nats-server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MB = 1 << 20
QUIET_S = 4
ROOT = Path(__file__).parents[3]
CHILD = """
import asyncio, json, sys
from pathlib import Path
from bus.connection import Bus
from bus.kv import Bucket
from bus.settings import NatsSettings
from bus.topology import ensure
from schemas.topology import fleet
from worker.sources import RemoteFile, Signed, Want
from worker.sources.asking import Patience, patiently
from worker.transfer.cooldown import Cooldown
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Part
from worker.transfer.settings import DownloadSettings

async def main(nats, url, size, folder, name, how):
    bus = await Bus.connect(NatsSettings(url=nats), name=name)
    await ensure(bus, fleet(bus.names))
    cooldown = Cooldown(name)
    cooldown.share(Bucket(bus, bus.names.bucket_leases), bus.names)
    fetcher = Fetcher(DownloadSettings(retry_interval_s=0.05), cooldown=cooldown)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    async def sign():
        return Signed(url)
    async def fetch():
        part = Part(Path(folder) / f"{name}.data", Path(folder) / f"{name}.journal")
        return await fetcher.fetch(RemoteFile("m.gguf", url, int(size)), sign, part, lambda _: None)
    # a source that is not asked through the fetcher (the Hub, object stores) keeps to it in this way
    found = await (fetch() if how == "fetch" else patiently(fetch, Patience(quiet=cooldown), url, "m"))
    print(json.dumps(found.size_bytes), flush=True)
    await bus.close()

asyncio.run(main(*sys.argv[1:]))
"""


def _started(site: Any, nats: str, file: Any, name: str, how: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", CHILD, nats, file.url, str(MB), str(site.part.data.parent), name, how]
    child = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("how", ["fetch", "look"])
async def test_a_second_process_waits_for_as_long_as_the_first_was_asked_to(site, nats_server, within, how):
    file = site.file("m.gguf", MB)
    site.server.fault("status", status=429, retry_after=str(QUIET_S), times=1)
    first, second = (_started(site, nats_server.url, file, name, how) for name in ("a", "b"))
    first.stdin.write("go\n")
    first.stdin.flush()
    await within(lambda: [each["status"] for each in site.gets()] == [429])
    second.stdin.write("go\n")
    second.stdin.flush()
    for child in (first, second):
        assert json.loads(child.stdout.readline()) == MB
        assert child.wait(10) == 0
    refused, *others = site.gets()
    assert [each["status"] for each in others] == [200, 200]
    assert min(each["at_s"] for each in others) - refused["at_s"] >= QUIET_S * 0.95
