"""Shares that are known already are the same as those worked out anew, and are worked out again when they must be."""

from __future__ import annotations

from typing import Any

from schemas.model import ModelRecord
from worker.desired.decide import Me, Neighbour, decide, holders_of
from worker.desired.shares import Shares

ME = Me("a", {"zone": "one"}, lambda each: each)


def record(model: str = "m", **selector: Any) -> ModelRecord:
    placement = {"copies": 2, "selector": selector}
    return ModelRecord.model_validate({"model": model, "source": "hf://o/r", "placement": placement})


def fleet(*names: str, **labels: str) -> dict[str, Neighbour]:
    return {name: Neighbour({"zone": "one"} | labels) for name in names}


async def test_what_was_prepared_is_what_would_be_worked_out() -> None:
    shares, nodes = Shares(), fleet(*"abcdefgh")
    records = {f"m{number}": record(f"m{number}", labels={"zone": "one"}) for number in range(50)}
    await shares.prepare(records.values(), nodes, ME, 1)
    assert decide(records, nodes, ME, {}, share=shares) == decide(records, nodes, ME, {})


async def test_other_nodes_other_labels_of_ours_or_another_record_are_worked_out_again() -> None:
    shares, one = Shares(), record()
    await shares.prepare([one], fleet("b", "c"), ME, 1)
    assert shares(one, 2, fleet("x", "y"), ME) == holders_of(one, 2, fleet("b", "c"), ME), "it is known"
    await shares.prepare([one], fleet("x", "y"), ME, 2)
    assert shares(one, 2, {}, ME) == holders_of(one, 2, fleet("x", "y"), ME)
    other = record(labels={"zone": "one"})
    assert shares(other, 2, fleet("b", "c"), ME) == holders_of(other, 2, fleet("b", "c"), ME)
    moved = Me("a", {"zone": "two"}, lambda each: each)
    await shares.prepare([other], fleet("b", "c"), moved, 2)
    assert set(shares(other, 2, {}, moved)) == {"b", "c"}


async def test_the_state_of_copies_is_no_reason_to_begin_anew_unless_the_selector_asks_for_it() -> None:
    shares, plain = Shares(), record()
    follows = record("n", terms=[{"match": [{"key": "model.m", "operator": "Exists"}]}])
    with_copy = Me("a", {"zone": "one", "model.m": "Ready"}, lambda each: each)
    await shares.prepare([plain, follows], fleet("b"), ME, 1)
    await shares.prepare([plain, follows], fleet("c"), with_copy, 1)
    assert "b" in shares(plain, 2, fleet("c"), with_copy), "it is known"
    assert shares(follows, 2, fleet("b"), ME) == ()
    assert shares(follows, 2, fleet("b", **{"model.m": "Ready"}), with_copy) == holders_of(
        follows, 2, fleet("b", **{"model.m": "Ready"}), with_copy
    )
