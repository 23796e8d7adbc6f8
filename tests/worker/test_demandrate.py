"""Requests a second of each model, the old ones counting ever less."""

from __future__ import annotations

import pytest

from worker.demandrate import DemandRates


def test_a_steady_stream_is_told_at_its_rate() -> None:
    rates = DemandRates(half_life_s=60)
    for second in range(1200):
        rates.add("a", float(second), requests=3)
    assert rates.per_s("a", 1200.0) == pytest.approx(3, rel=0.02)


def test_a_rate_halves_in_its_half_life() -> None:
    rates = DemandRates(half_life_s=60)
    rates.add("a", 0.0)
    assert rates.per_s("a", 60.0) == pytest.approx(rates.per_s("a", 0.0) / 2)
    assert rates.per_s("b", 0.0) == 0


def test_what_nobody_asks_for_is_forgotten() -> None:
    rates = DemandRates(half_life_s=1)
    rates.add("a", 0.0)
    assert rates.per_s("a", 100.0) == 0
    assert rates.per_s("a", 101.0) == 0


def test_a_clock_that_stands_still_harms_nothing() -> None:
    rates = DemandRates()
    rates.add("a", 5.0)
    rates.add("a", 5.0)
    assert rates.per_s("a", 5.0) == pytest.approx(2 * one_request(), rel=1e-6)
    assert rates.per_s("a", 4.0) == rates.per_s("a", 5.0)


def one_request() -> float:
    rates = DemandRates()
    rates.add("a", 0.0)
    return rates.per_s("a", 0.0)
