"""The offline optimum against traces whose answer is known, and the traces themselves."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from bench.switches.optimum import belady
from bench.switches.traces import trace

TEN = [f"m{number}" for number in range(10)]


def test_what_is_there_is_not_loaded_again() -> None:
    assert belady(["a", "a", "b", "a", "b"], 2) == 2
    assert belady(["a", "b", "a", "b"], 1) == 4


def test_who_is_needed_last_goes() -> None:
    assert belady(["a", "b", "c", "a", "b"], 2) == 4
    assert belady(["a", "b", "c", "a", "c", "b"], 2) == 4


def test_ten_models_in_turn_on_two_devices_are_nearly_all_misses_even_so() -> None:
    """With one place to keep a model in until it comes again, one request in nine is no load."""
    assert belady(TEN * 9, 2) == 90 - 9


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_of_who_goes_needs_fewer_loads(seed: int) -> None:
    models = trace("zipf", TEN[:4], 9, service_s=0.1, rate_per_s=1.0, seed=seed).models
    assert belady(models, 2) == _least(tuple(models), frozenset(), 2)


def _least(models: tuple[str, ...], there: frozenset[str], places: int) -> int:
    if not models:
        return 0
    first, rest = models[0], models[1:]
    if first in there:
        return _least(rest, there, places)
    kept = [there] if len(there) < places else [there - {gone} for gone in there]
    return 1 + min(_least(rest, each | {first}, places) for each in kept)


def test_an_optimum_needs_a_place() -> None:
    with pytest.raises(ValueError):
        belady(["a"], 0)


def test_a_trace_in_turn_asks_for_each_model_equally_often() -> None:
    asked = trace("in-turn-5", TEN, 40, service_s=0.2, rate_per_s=1.0, seed=1)
    assert set(Counter(asked.models).values()) == {4}
    assert asked.at_once == 5


def test_a_zipf_trace_falls_alike_from_the_same_seed_and_prefers_the_first() -> None:
    def draw(seed: int) -> list[str]:
        return trace("zipf", TEN, 4000, service_s=0.2, rate_per_s=4.0, seed=seed).models

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    counts = Counter(draw(1))
    assert counts["m0"] / counts["m9"] == pytest.approx(10, rel=0.25)
    times = [each.at_s for each in trace("zipf", TEN, 100, service_s=0.2, rate_per_s=4.0, seed=1).requests]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))


def test_a_trace_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="in-turn"):
        trace("backwards", TEN, 1, service_s=0.1, rate_per_s=1.0, seed=1)
