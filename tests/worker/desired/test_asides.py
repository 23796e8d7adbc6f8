"""Who steps aside, as far as a node can see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.model import CopyRecord, ModelRecord
from worker.desired.asides import STAY_S, Asides
from worker.desired.decide import Neighbour
from worker.desired.records import Seen


class Fleet:
    """What the buckets say. `asked`: how often the copies of a model were."""

    def __init__(self) -> None:
        self.looks = self.asked = 0
        self.now = 0.0
        self.copies: list[CopyRecord] = []

    async def copies_of(self, model: str) -> list[CopyRecord]:
        self.asked += 1
        return [copy for copy in self.copies if copy.model == model]

    def view(self) -> Mapping[str, Neighbour]:
        return {copy.node: Neighbour({f"model.{copy.model}": copy.state}) for copy in self.copies}

    def failed(self) -> Mapping[str, set[str]]:
        failed = [copy for copy in self.copies if copy.state == "Failed"]
        return {copy.model: {each.node for each in failed if each.model == copy.model} for copy in failed}


def record(generation: int = 1) -> ModelRecord:
    told: dict[str, Any] = {"model": "m", "source": "hf://o/r", "placement": {"copies": 1}, "generation": generation}
    return ModelRecord.model_validate(told)


def failed(node: str, error: str, generation: int = 1) -> CopyRecord:
    return CopyRecord(model="m", node=node, state="Failed", since=0, error=error, generation=generation)


async def test_a_node_steps_aside_until_it_has_the_model_or_another_one_is_wanted() -> None:
    fleet = Fleet()
    asides = Asides(fleet, monotonic=lambda: fleet.now)  # type: ignore[arg-type]
    seen = {"m": Seen(record(), 1, 0.0)}
    fleet.copies, fleet.looks = [failed("x", "no_space"), failed("y", "source_unreachable")], 1
    await asides.look(seen, fleet)  # type: ignore[arg-type]
    assert asides.of(record()) == {"x"}
    assert not asides.of(record(2))
    await asides.look(seen, fleet)  # type: ignore[arg-type]
    assert fleet.asked == 1, "nothing new was seen of the nodes"
    trying = failed("x", "no_space").model_copy(update={"state": "Downloading"})
    fleet.copies, fleet.looks, fleet.now = [trying], 2, STAY_S / 2
    await asides.look(seen, fleet)  # type: ignore[arg-type]
    assert asides.of(record()) == {"x"}
    fleet.copies, fleet.looks = [trying.model_copy(update={"state": "Ready"})], 3
    await asides.look(seen, fleet)  # type: ignore[arg-type]
    assert not asides.of(record())


async def test_a_node_of_which_nothing_more_is_heard_has_its_share_back() -> None:
    fleet = Fleet()
    asides = Asides(fleet, monotonic=lambda: fleet.now)  # type: ignore[arg-type]
    fleet.copies, fleet.looks = [failed("x", "vram_insufficient")], 1
    await asides.look({"m": Seen(record(), 1, 0.0)}, fleet)  # type: ignore[arg-type]
    fleet.now = STAY_S
    assert not asides.of(record())
