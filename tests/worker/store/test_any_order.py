"""Installs, updates, deletes, uses, clearings and crashes in any order, against a dictionary."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from worker.sources import Corrupt, Digest

MODELS = st.sampled_from(("a", "b/c", "D:Q4"))
REVISIONS = st.sampled_from(("one", "two", "three"))


class Dead(BaseException):
    """The worker has ended: nothing that it does after this reaches the disk."""


class Lived:
    """Ends a worker at a step, and every step after it."""

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self, _: str) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Dead


def machine(storehouse: ModuleType) -> type[RuleBasedStateMachine]:
    files = {
        (model, revision): {"m.gguf": storehouse.model_bytes(f"{model}{revision}", 500), "shared.bin": b"shared" * 100}
        for model in ("a", "b/c", "D:Q4")
        for revision in ("one", "two", "three")
    }

    class Walk(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
            self.runner = asyncio.Runner()
            self.shelf = storehouse.Shelf()
            for (model, revision), data in files.items():
                self.shelf.publish(source(model, revision), revision, data)
            self.known: dict[str, str] = {}
            self.uses: list[tuple[Any, Path, bytes]] = []
            self._open()

        def _open(self) -> None:
            self.lived = Lived()
            house = storehouse.House(self.root / "store", self.shelf, step=self.lived)
            self.house = self.runner.run(house.open())

        def _do(self, work: Any) -> None:
            self.runner.run(work)

        @rule(model=MODELS, revision=REVISIONS)
        def install(self, model: str, revision: str) -> None:
            self._do(self.house.copies.ensure(storehouse.want(model, source(model, revision))))
            self.known[model] = revision

        @rule(model=MODELS, retain=st.booleans())
        def remove(self, model: str, retain: bool) -> None:
            self._do(self.house.copies.remove(model, retain=retain))
            self.known.pop(model, None)

        @rule(model=MODELS)  # what is drawn depends on nothing: where a crash falls is up to threads
        def use(self, model: str) -> None:
            if model not in self.known:
                return
            used = self.runner.run(self.house.store.use(model))
            copy = self.house.store.copies()[model]
            self.uses.append((used, copy.main, files[model, self.known[model]]["m.gguf"]))

        @rule()
        def release(self) -> None:
            for used, _, _ in self.uses[:1]:
                used.release()
            del self.uses[:1]

        @rule()
        def tidy(self) -> None:
            self._do(self.house.store.tidy())

        @rule()
        def reopen(self) -> None:
            self._leave()
            self._open()

        @rule(model=MODELS, revision=REVISIONS, steps=st.integers(0, 60), delete=st.booleans())
        def crash(self, model: str, revision: str, steps: int, delete: bool) -> None:
            copies = self.house.copies
            self.lived.left = steps
            wanted = storehouse.want(model, source(model, revision))
            try:
                self._do(copies.remove(model) if delete else copies.ensure(wanted))
                ended = True
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                ended = False
            before = self.known.get(model)
            after = None if delete else revision
            self._leave()
            self._open()
            found = storehouse.content(self.house).get(model)
            assert found in ((after,) if ended else (before, after))
            self.known.pop(model, None)
            if found is not None:
                self.known[model] = found

        def _leave(self) -> None:
            """What the system does with a process that ended: its locks are gone."""
            for used, _, _ in self.uses:
                used.release()
            self.uses.clear()
            for held, _ in self.house.store._ground.parts._held.values():
                os.close(held)
            self.house.store._ground.parts._held.clear()
            self.runner.close()
            self.runner = asyncio.Runner()

        @invariant()
        def all_is_as_known(self) -> None:
            assert storehouse.content(self.house) == self.known
            for _, path, data in self.uses:
                if path.parent.parent.exists():
                    assert not path.exists() or path.read_bytes() == data

        @invariant()
        def nothing_lies_about(self) -> None:
            if not self.uses:
                self.runner.run(self.house.store.tidy())
                assert not storehouse.litter(self.root / "store", self.house)

        def teardown(self) -> None:
            self._leave()
            self.runner.close()
            shutil.rmtree(self.root)

    return Walk


def source(model: str, revision: str) -> str:
    return f"hf://o/{''.join(each for each in model if each.isalnum())}@{revision}"


@pytest.mark.timeout(300)
def test_any_order_of_changes_and_crashes_leaves_what_is_known(storehouse: ModuleType) -> None:
    few = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine(storehouse), settings=few)


CONTENTS = ("x", "y")
TOLD = ("sha256", "md5", "nothing")


def sharing_machine(storehouse: ModuleType) -> type[RuleBasedStateMachine]:
    """Several models of few contents, from sources that tell the SHA-256 of a file, another digest, or none."""
    data = {content: storehouse.model_bytes(content, 500) for content in CONTENTS}
    told: dict[str, Callable[[bytes], Digest | None]] = {
        "sha256": storehouse.sha256,
        "md5": lambda data: Digest("md5", hashlib.md5(data).hexdigest()),
        "nothing": lambda _: None,
    }
    wants = st.tuples(st.sampled_from(CONTENTS), st.sampled_from(TOLD), st.sampled_from(("1", "2")))

    class Sharing(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
            self.runner = asyncio.Runner()
            self.shelf = storehouse.Shelf()
            for content, kind, host in itertools.product(CONTENTS, TOLD, ("1", "2")):
                text = self._source((content, kind, host))
                self.shelf.publish(text, "r", {"m.gguf": data[content], "same.bin": b"same" * 50})
                self.shelf.digests[text] = told[kind]
            self.known: dict[str, str] = {}
            self.retained: dict[str, str] = {}
            self._open()

        def _source(self, wanted: tuple[str, str, str]) -> str:
            return f"hf://{wanted[2]}/{wanted[0]}-{wanted[1]}@r"

        def _open(self) -> None:
            self.house = self.runner.run(storehouse.House(self.root / "store", self.shelf).open())

        def _ensure(self, *asked: tuple[str, tuple[str, str, str]], again: bool = False) -> None:
            async def together() -> None:
                wants = [storehouse.want(model, self._source(wanted)) for model, wanted in asked]
                await asyncio.gather(*(self.house.copies.ensure(want, again=again) for want in wants))

            self.runner.run(together())
            self.known |= {model: wanted[0] for model, wanted in asked}
            for model, _ in asked:
                self.retained.pop(model, None)

        @rule(model=MODELS, wanted=wants, again=st.booleans())
        def ensure(self, model: str, wanted: tuple[str, str, str], again: bool) -> None:
            self._ensure((model, wanted), again=again)

        @rule(one=wants, other=wants)
        def ensure_two_at_once(self, one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
            self._ensure(("a", one), ("b/c", other))

        @rule(model=MODELS, retain=st.booleans())
        def remove(self, model: str, retain: bool) -> None:
            self.runner.run(self.house.copies.remove(model, retain=retain))
            content = self.known.pop(model, None)
            if not retain:
                self.retained.pop(model, None)
            elif content is not None:
                self.retained[model] = content

        @rule(model=MODELS)
        def a_bit_flips_is_found_and_mended(self, model: str) -> None:
            if model not in self.known:
                return
            copy = self.house.store.copies()[model]
            content = copy.main.read_bytes()
            copy.main.chmod(0o644)
            copy.main.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            with pytest.raises(Corrupt):
                self.runner.run(self.house.copies.verify(model))
            self._ensure((model, (self.known[model], "nothing", "1")))

        @rule()
        def reopen(self) -> None:
            self.runner.run(self.house.copies.stop())
            self._open()

        @invariant()
        def every_copy_is_whole_and_served(self) -> None:
            self.runner.run(self.house.copies.tidy())
            copies = self.house.store.copies()
            assert {model: copy.main.read_bytes() for model, copy in copies.items()} == {
                model: data[content] for model, content in self.known.items()
            }
            assert not [copy.broken for copy in copies.values() if copy.broken]
            assert {copy.model for copy in self.house.served} == set(self.known)
            states = self.house.copies.states()
            assert {model: record.state for model, record in states.items()} == dict.fromkeys(self.known, "Ready")

        @invariant()
        def every_content_is_there_once_and_no_other(self) -> None:
            needed = {*self.known.values(), *self.retained.values()}
            blobs = {path.stat().st_ino: path for path in (self.root / "store" / "blobs").iterdir()}
            assert len(blobs) == len(needed) + bool(needed), sorted(blobs.values())
            views = (self.root / "store" / "models").rglob("*.*")
            files = {path.stat().st_ino for path in views if path.name in ("m.gguf", "same.bin")}
            assert files <= set(blobs)
            assert not list((self.root / "store" / "partial").iterdir())
            assert not storehouse.litter(self.root / "store", self.house)

        def teardown(self) -> None:
            self.runner.run(self.house.copies.stop())
            self.runner.close()
            shutil.rmtree(self.root)

    return Sharing


@pytest.mark.timeout(300)
def test_models_that_share_contents_stay_whole_whatever_becomes_of_the_others(storehouse: ModuleType) -> None:
    few = settings(max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(sharing_machine(storehouse), settings=few)
