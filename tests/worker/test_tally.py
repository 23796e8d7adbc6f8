"""What is counted of the requests of a node."""

from __future__ import annotations

from worker.tally import ENGINES_KEPT, Tally


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_tokens_a_second_are_of_the_last_minute() -> None:
    clock = Clock()
    tally = Tally(clock)
    clock.now += 10
    tally.made(50)
    assert tally.pressure(active=0, waiting=0).tokens_per_s == 5, "it has run for ten seconds"
    clock.now += 50
    tally.made(70)
    assert tally.tokens_per_s == 2
    clock.now += 30
    assert tally.tokens_per_s == round(70 / 60, 2)
    clock.now += 40
    assert tally.tokens_per_s == 0


def test_bytes_over_nats_are_counted_by_engine_and_old_engines_forgotten() -> None:
    tally = Tally()
    tally.carried("engine-0", 10, 100)
    tally.carried("engine-0", 1, 1)
    assert (tally.carried_by("engine-0").received_bytes, tally.carried_by("engine-0").sent_bytes) == (11, 101)
    for number in range(1, ENGINES_KEPT + 1):
        tally.carried(f"engine-{number}", 1, 1)
    assert tally.carried_by("engine-0").sent_bytes == 0
    assert tally.carried_by("engine-1").sent_bytes == 1
