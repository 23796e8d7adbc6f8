"""Figures are medians over rounds; ratios are made inside each round."""

from __future__ import annotations

import json
from typing import Any

from bench.overhead import figures, report
from bench.overhead.figures import Figure, Samples
from bench.overhead.load import Load, Sample, Seen, Spread
from bench.processes import Cost

LOAD = Load("a load", 1, 10)


def sample(way: str, number: int, *, cpu: dict[str, float], first: Spread | None = None, **seen: Any) -> Sample:
    numbers = {"streams": 1, "seconds": 1.0, "chunks": 100, "chunks_per_s": 100.0, "answers": 1, "reads": 1, "bytes": 1}
    faults = {"errors": {"cut": 0}, "bad_status": 0, "missing_done": 0, "disordered": 0}
    spreads = {"first_ms": first or Spread(count=0), "gap_ms": Spread(count=0), "delay_ms": Spread(count=0)}
    cost = Cost(at_s=1.0, cpu_s=cpu, rss_mib=dict.fromkeys(cpu, 10.0), machine_s=sum(cpu.values()) + 0.5)
    between = tuple(name for name in cpu if name != "engine")
    return Sample(way, LOAD.name, number, Seen.model_validate(numbers | faults | spreads | seen), cost, between)


def rounds(way: str, *cpu: dict[str, float]) -> list[Sample]:
    return [sample(way, number, cpu=spent) for number, spent in enumerate(cpu)]


def test_ratios_are_made_inside_a_round() -> None:
    mine = rounds("puna", {"gateway": 1.0}, {"gateway": 10.0}, {"gateway": 4.0})
    theirs = rounds("nginx", {"nginx": 0.5}, {"nginx": 5.0}, {"nginx": 4.0})
    read = Samples([*mine, *theirs])
    ratio = read.ratio("puna", figures.per_cpu_s("gateway"), "nginx", figures.per_cpu_s("nginx"))
    assert ratio == Figure(median=0.5, least=0.5, most=1.0)


def test_the_whole_path_counts_everything_between_client_and_engine() -> None:
    [one] = rounds("puna", {"gateway": 1.0, "worker": 2.0, "nats-server": 1.0, "engine": 50.0})
    assert figures.between(one) == 25.0


def test_what_was_not_seen_is_no_figure() -> None:
    read = Samples(rounds("direct", {"engine": 1.0}))
    assert read.figure("direct", figures.first_ms) is None


def test_added_time_is_the_difference_of_the_same_round() -> None:
    some = [sample("direct", 0, cpu={"engine": 1.0}, first=Spread(count=1, p50=0.5))]
    some.append(sample("puna", 0, cpu={"gateway": 1.0}, first=Spread(count=1, p50=2.0)))
    assert Samples(some).added("puna", figures.first_ms, "direct") == Figure(1.5, 1.5, 1.5)


def test_the_report_names_faults_and_noise_and_its_json_is_json() -> None:
    bad = sample("direct", 0, cpu={"engine": 1.0}, errors={"cut": 2}, missing_done=1)
    lines = "\n".join(report.text([LOAD], [bad]))
    assert "FAULTS in a load, direct, round 1: cut 2, missing [DONE] 1" in lines
    assert "others used 0.50 cores" in lines
    plain = json.loads(json.dumps(report.as_json([LOAD], [bad]), allow_nan=False))
    assert plain["faults"] == 3
