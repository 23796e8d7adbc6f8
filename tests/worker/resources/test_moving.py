"""Moving statistics: right for every run of values, in the memory of a few numbers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from worker.moving import MovingStatistics

values = st.floats(min_value=-1e15, max_value=1e15)
steps = st.floats(min_value=0, max_value=1e6)
series = st.lists(st.tuples(values, steps), min_size=1, max_size=60)


def fed(points: list[tuple[float, float]]) -> tuple[MovingStatistics, list[float]]:
    moving, at, times = MovingStatistics(), 0.0, list[float]()
    for value, step in points:
        at += step
        moving.update(value, at)
        times.append(at)
    return moving, times


@given(series)
def test_figures_are_those_of_all_values(points: list[tuple[float, float]]) -> None:
    moved = fed(points)[0].moved
    seen = [value for value, _ in points]
    assert moved is not None
    assert (moved.current, moved.min, moved.max, moved.count) == (seen[-1], min(seen), max(seen), len(seen))
    total = math.fsum(seen)
    assert math.isclose(moved.sum, total, rel_tol=1e-9, abs_tol=1e-9 * max(map(abs, seen)))
    assert moved.min <= moved.avg <= moved.max


@given(series)
def test_diff_and_rate_are_those_of_the_last_two(points: list[tuple[float, float]]) -> None:
    moving, times = fed(points)
    seen = [value for value, _ in points]
    moved = moving.moved
    assert moved is not None
    if len(seen) == 1:
        assert (moved.diff, moved.rate, moving.rate) == (0, 0, None)
        return
    assert moved.diff == seen[-1] - seen[-2]
    passed = times[-1] - times[-2]
    assert moving.rate == (moved.diff / passed if passed > 0 else None)


@given(st.lists(st.floats(0, 1e12), min_size=2, max_size=30))
def test_a_counter_that_only_grows_never_has_a_rate_below_zero(counts: list[float]) -> None:
    moving = MovingStatistics()
    for at, count in enumerate(sorted(counts)):
        moving.update(count, float(at))
        assert (moving.rate or 0) >= 0


def test_without_values_there_is_nothing_to_tell() -> None:
    assert MovingStatistics().moved is None


def test_small_values_are_not_lost_beside_large_ones() -> None:
    moving = MovingStatistics()
    for value in [1e16, *([1.0] * 1000), -1e16]:
        moving.update(value, 0.0)
    assert moving.moved is not None
    assert moving.moved.sum == 1000.0
