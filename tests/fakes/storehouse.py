"""A small real source of model files, and a worker that is killed at a chosen step of what it does with them.

`python tests/fakes/storehouse.py FOLDER [FIRST LAST [WALK [STRIDE]]]` walks through installs, an update, deletes and a
retained delete (`main`), or through files that are taken from elsewhere on the machine, mended and cleared (`beside`).
For each step of the disk, or each so many, it forks a worker that ends there (SIGKILL), opens the store again, checks
it, does that operation and the next one, and takes all away. It prints one line of JSON: steps, kills, and bytes that
were sent again at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from schemas.model import CopyRecord, Profile, Wanted
from worker.copies import Copies
from worker.copying import Parts
from worker.sources import Corrupt, Digest, Listing, NotThere, RemoteFile, Signed, SourceError
from worker.store.settings import SharedRoot, StoreSettings
from worker.store.store import Store
from worker.transfer.intervals import Intervals
from worker.transfer.journal import Identity, Journal
from worker.transfer.part import Digests

_spec = importlib.util.spec_from_file_location("fakes_gguf_", Path(__file__).with_name("gguf.py"))
assert _spec and _spec.loader
gguf = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gguf)
CHUNK = 4096


def model_bytes(name: str, size: int = 20_000) -> bytes:
    """A whole GGUF file that differs by name."""
    return gguf.model(gguf.CHAT | {"general.name": name, "general.description": "x" * size})


class Shelf:
    """A source: what lies on it, by text and revision. `publish` replaces. `told_digest` is what it tells of a file,
    unless `digests` has something else for its text."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[str, dict[str, bytes], dict[str, str]]] = {}
        self.asked = 0
        self.broken: list[SourceError] = []
        self.told_digest: Callable[[bytes], Digest | None] = sha256
        self.digests: dict[str, Callable[[bytes], Digest | None]] = {}

    def publish(self, text: str, revision: str, files: dict[str, bytes], roles: dict[str, str] | None = None) -> None:
        self.models[text] = (revision, files, roles or {})

    async def resolve(self, ref: Any, *, want: Any, secrets: Any) -> Listing:
        self.asked += 1
        if self.broken:
            raise self.broken.pop(0)
        if ref.text not in self.models:
            raise NotThere(f"{ref.text} is not on the shelf")
        revision, files, roles = self.models[ref.text]
        told_digest = self.digests.get(ref.text, self.told_digest)
        listed = tuple(
            RemoteFile(
                path,
                f"https://shelf/{path}",
                len(data),
                told_digest(data),
                role=roles.get(path, "model" if not n else "other"),  # type: ignore[arg-type]
            )
            for n, (path, data) in enumerate(files.items())
        )
        return Listing(ref, revision, listed, next(iter(files)))

    async def requests(self, file: RemoteFile, *, want: Any, secrets: Any) -> Signed:
        return Signed(json.dumps([want.ref.text, file.path]))

    def bytes_of(self, signed: Signed) -> bytes:
        text, path = json.loads(signed.url)
        return self.models[text][1][path]


def sha256(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


class Carrier:
    """Brings bytes a chunk at a time and goes on where an earlier one ended. `gate` holds it after each chunk."""

    def __init__(self, shelf: Shelf, step: Callable[[str], None] = lambda _: None) -> None:
        self.shelf = shelf
        self.step = step
        self.sent = 0
        self.fetches = 0
        self.gate: asyncio.Event | None = None
        self.moving = asyncio.Event()
        self.spoil = False

    async def fetch(self, file: RemoteFile, sign: Any, part: Any, on_bytes: Any, *, source: str = "") -> Digests:
        self.fetches += 1
        data = self.shelf.bytes_of(await sign())
        if self.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        done = part.data.stat().st_size if part.data.exists() else 0
        digest = str(file.digest) if file.digest else None
        Journal.begin(part.journal, Identity(file.size_bytes, digest), Intervals([(0, len(data))]), synced=True).close()
        on_bytes(done)
        with open(part.data, "ab") as out:
            while done < len(data):
                self.step(f"before chunk {file.path} {done}")
                out.write(data[done : done + CHUNK])
                out.flush()
                count = min(CHUNK, len(data) - done)
                done += count
                self.sent += count
                on_bytes(count)
                self.moving.set()
                if self.gate is not None:
                    await self.gate.wait()
            os.fsync(out.fileno())
        data = part.data.read_bytes()
        return Digests(len(data), hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest())


class House:
    """A store with its copies over a shelf, as node.py builds them. `published`: every record in order."""

    def __init__(self, root: Path, shelf: Shelf, settings: StoreSettings | None = None, **options: Any) -> None:
        step = options.pop("step", None)
        environ = options.pop("environ", {"HOME": "/nonexistent", "HF_HOME": "/nonexistent"})
        self.shelf = shelf
        self.engine_paths: list[Path] = []
        self.store = Store(
            root,
            settings or StoreSettings(reserved_disk_bytes=0),
            environ=environ,
            engine_paths=lambda: self.engine_paths,
            step=step,
        )
        self.carrier = Carrier(shelf, step or (lambda _: None))
        self.published: list[tuple[str, CopyRecord | None]] = []
        self.served: list[Any] = []
        self.protected: set[str] = set()
        self.copies = Copies(
            "n1",
            self.store,
            Parts(self.carrier, None),  # type: ignore[arg-type]
            Few(),
            publish=lambda model, record: self.published.append((model, record)),
            catalogue=self._catalogue,
            protected=lambda: self.protected,
            find=lambda _: self.shelf,
            dice=lambda: 0.0,
            **options,
        )

    def _catalogue(self, copies: Any) -> None:
        self.served = list(copies)

    async def open(self) -> House:
        await self.store.open()
        self.copies.begin()
        return self


class Few:
    num_download_worker = 5
    download_retry = 3
    retry_interval_s = 0.01
    download_timeout_s: float | None = None
    progress_interval_s = 2.0


def want(model: str, source: str, **fields: Any) -> Wanted:
    return Wanted(model=model, source=source, **fields)


# -- the walk ----------------------------------------------------------------------------------------------------------
A1, A2, SHARED = model_bytes("a1"), model_bytes("a2"), model_bytes("shared", 30_000)


def shelf() -> Shelf:
    made = Shelf()
    made.publish("hf://o/a@one", "one", {"a.gguf": A1, "mm/proj.gguf": SHARED}, {"mm/proj.gguf": "projector"})
    made.publish("hf://o/a@two", "two", {"a.gguf": A2, "mm/proj.gguf": SHARED}, {"mm/proj.gguf": "projector"})
    made.publish("hf://o/b@one", "one", {"b.gguf": SHARED})
    return made


Op = Callable[[House], Any]
OPS: list[tuple[str, Op]] = [
    ("install a", lambda h: h.copies.ensure(want("a", "hf://o/a@one"))),
    ("install b", lambda h: h.copies.ensure(want("b/x", "hf://o/b@one"))),
    ("update a", lambda h: h.copies.ensure(want("a", "hf://o/a@two"))),
    ("profile a", lambda h: h.copies.ensure(want("a", "hf://o/a@two", profile=Profile(pinned=True)))),
    ("again a", lambda h: h.copies.ensure(want("a", "hf://o/a@two", profile=Profile(pinned=True)), again=True)),
    ("retain b", lambda h: h.copies.remove("b/x", retain=True)),
    ("delete a", lambda h: h.copies.remove("a")),
    ("back b", lambda h: h.copies.ensure(want("b/x", "hf://o/b@one"))),
    ("delete b", lambda h: h.copies.remove("b/x")),
]
AFTER: list[dict[str, str]] = [
    {},
    {"a": "one"},
    {"a": "one", "b/x": "one"},
    {"a": "two", "b/x": "one"},
    {"a": "two", "b/x": "one"},
    {"a": "two", "b/x": "one"},
    {"a": "two"},
    {},
    {"b/x": "one"},
    {},
]
"""What is there after so many operations."""
MOST: list[int] = [len(A1) + len(SHARED), 0, len(A2), 0, len(A2) + len(SHARED), 0, 0, 0, 0]
"""What each has to bring."""


@dataclass(frozen=True)
class Walk:
    """Operations, what is there after so many of them, and what each has to bring. `unsure`: operations in which a file
    may be wrong for a while. `around` makes what lies beside the store, and returns the options of the house."""

    ops: list[tuple[str, Op]]
    after: list[dict[str, str]]
    most: list[int]
    unsure: tuple[int, ...] = ()
    around: Callable[[Path], dict[str, Any]] = lambda _: {}

    def house(self, root: Path, **options: Any) -> House:
        return House(root, shelf(), **self.around(root), **options)


async def mended(house: House) -> None:
    """A bit flips, is found, and the file comes anew."""
    blob = house.store.copies()["a"].folder.parents[2] / "blobs" / f"sha256-{hashlib.sha256(A1).hexdigest()}"
    if blob.exists():
        blob.chmod(0o644)
        blob.write_bytes(A1[:-1] + bytes([A1[-1] ^ 1]))
    with contextlib.suppress(Corrupt):
        await house.copies.verify("a")
    await house.copies.ensure(want("a", "hf://o/a@one"))


async def cleared(house: House) -> None:
    """Room is needed: all goes that may."""
    await house.store._budget._clear(1 << 40, (), house.copies._evict)


def beside(root: Path) -> dict[str, Any]:
    """A Hugging Face cache that has one file, and a root of others with the other one."""
    cache, shared = root.with_suffix(".hub"), root.with_suffix(".shared")
    if not shared.exists():
        blobs = cache / "hub" / "models--o--b" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / hashlib.sha256(SHARED).hexdigest()).write_bytes(SHARED)
        (shared / "blobs").mkdir(parents=True)
        (shared / "blobs" / f"sha256-{hashlib.sha256(A1).hexdigest()}").write_bytes(A1)
    settings = StoreSettings(reserved_disk_bytes=0, shared_roots=(SharedRoot(path=shared),))
    return {"settings": settings, "environ": {"HOME": "/nonexistent", "HF_HOME": str(cache)}}


WALKS: dict[str, Walk] = {
    "main": Walk(OPS, AFTER, MOST),
    "beside": Walk(
        [
            ("adopt b", lambda h: h.copies.ensure(want("b/x", "hf://o/b@one"))),
            ("adopt a", lambda h: h.copies.ensure(want("a", "hf://o/a@one"))),
            ("mend a", mended),
            ("clear", cleared),
        ],
        [{}, {"b/x": "one"}, {"b/x": "one", "a": "one"}, {"b/x": "one", "a": "one"}, {}],
        [0, 0, 0, 0],
        unsure=(2,),
        around=beside,
    ),
}


async def walk(made: Walk, root: Path, first: int, note: Callable[[int], None], step: Callable[[str], None]) -> None:
    house = await made.house(root, step=step).open()
    for number in range(first, len(made.ops)):
        note(number)
        await made.ops[number][1](house)
    note(len(made.ops))
    await house.copies.stop()


def content(house: House) -> dict[str, str]:
    """What is there: every file is read and compared."""
    found: dict[str, str] = {}
    for model, copy in house.store.copies().items():
        assert not copy.broken, (model, copy.broken)
        files = house.shelf.models[copy.manifest.source][1]
        assert {file.path for file in copy.manifest.files} == set(files)
        for path, data in files.items():
            assert copy.path(path).read_bytes() == data, f"{model} {path} is not what it should be"
        current = copy.folder.parent / "current"
        assert os.readlink(current) == copy.token, f"{model}: current is not what is served"
        found[model] = copy.revision
    return found


def litter(root: Path, house: House) -> list[str]:
    """Whatever lies there and belongs to nothing."""
    out = [str(path) for path in root.rglob(".new-*")] + [str(path) for path in (root / "trash").iterdir()]
    views = {copy.folder for copy in house.store.copies().values()}
    out += [str(p) for m in (root / "models").iterdir() for p in m.iterdir() if p not in views and p.name != "current"]
    needed = {blob for copy in house.store.copies().values() for blob in copy.manifest.blobs}
    for path in (root / "retained").iterdir():
        needed |= {file["sha256"] for file in json.loads(path.read_text())["files"]}
    partials = {path.name for path in (root / "partial").iterdir()}
    for path in (root / "blobs").iterdir():
        if path.name.removeprefix("sha256-") not in needed and path.name not in partials:
            out.append(str(path))
    return out


def killed_at(made: Walk, root: Path, number: int) -> tuple[int, int]:
    """Run the walk in a process that ends at a step. Returns the operation it was in, and the bytes it had sent."""
    notes, fresh = root.with_suffix(".notes"), root.with_suffix(".fresh")
    lock = threading.Lock()

    def write(text: str) -> None:
        """In one step: the process may end at any moment."""
        with lock:
            fresh.write_text(text)
            fresh.replace(notes)

    write("0 0")
    pid = os.fork()
    if pid == 0:
        seen, sent, at = 0, 0, 0
        with contextlib.suppress(BaseException):

            def note(op: int) -> None:
                nonlocal at, sent
                at, sent = op, 0
                write(f"{at} {sent}")

            def step(name: str) -> None:
                nonlocal seen, sent
                if name.startswith("before chunk"):
                    sent += CHUNK
                    write(f"{at} {sent}")
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

            asyncio.run(walk(made, root, 0, note, step))
        write(f"{at} {sent} {seen}")
        os._exit(0)
    os.waitpid(pid, 0)
    told = [int(part) for part in notes.read_text().split()]
    if len(told) == 3:
        return -told[2], 0
    return told[0], told[1]


async def checked(made: Walk, root: Path, at: int, sent: int) -> int:
    """Open what a killed worker left, check it, end the walk. Returns the bytes that were sent again."""
    ops, after, most = made.ops, made.after, made.most
    house = await made.house(root).open()
    there = after[at] if at in made.unsure else content(house)
    assert there in (after[at], after[min(at + 1, len(ops))]) or ops[at][0] == "clear", f"in {ops[at][0]}: {there}"
    assert not litter(root, house), f"in {ops[at][0]}: {litter(root, house)}"
    again = 0
    for number in range(at, min(at + 2, len(ops))):
        before = house.carrier.sent
        await ops[number][1](house)
        if number == at and there == after[at]:
            again = max(sent + house.carrier.sent - before - most[at], 0)
        assert content(house) == after[number + 1], ops[number][0]
        assert not litter(root, house), f"after {ops[number][0]}: {litter(root, house)}"
    for _ in range(2):  # the second time takes what was retained
        for model in ("a", "b/x"):
            await house.copies.remove(model)
    assert not list((root / "blobs").iterdir()), "blobs are left at the end"
    assert not list((root / "partial").iterdir()), "parts are left at the end"
    await house.copies.stop()
    return again


def main(folder: Path, first: int, last: int, made: Walk, stride: int) -> None:
    number, worst, kills = first, 0, 0
    while number < last:
        root = folder / f"store-{number}"
        made.around(root)
        at, sent = killed_at(made, root, number)
        if at < 0:
            break
        again, name = asyncio.run(checked(made, root, at, sent)), made.ops[at][0]
        assert name == "again a" or again <= 2 * CHUNK, f"step {number}, {name}: {again} bytes were sent again"
        worst, kills = max(worst, 0 if name == "again a" else again), kills + 1
        shutil.rmtree(root)
        number += stride
    print(json.dumps({"steps": number, "kills": kills, "sent_again": worst}))


if __name__ == "__main__":
    first, last = [int(part) for part in sys.argv[2:4]] or [0, 1 << 30]
    given = WALKS[sys.argv[4] if len(sys.argv) > 4 else "main"]
    main(Path(sys.argv[1]), first, last, given, int(sys.argv[5]) if len(sys.argv) > 5 else 1)
