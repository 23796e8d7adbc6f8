"""Installs, updates, deletes, uses, clearings and crashes in any order, against a dictionary."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

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

        @precondition(lambda self: self.known)
        @rule(data=st.data())
        def use(self, data: Any) -> None:
            model = data.draw(st.sampled_from(sorted(self.known)))
            used = self.runner.run(self.house.store.use(model))
            copy = self.house.store.copies()[model]
            self.uses.append((used, copy.main, files[model, self.known[model]]["m.gguf"]))

        @precondition(lambda self: self.uses)
        @rule()
        def release(self) -> None:
            self.uses.pop(0)[0].release()

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
