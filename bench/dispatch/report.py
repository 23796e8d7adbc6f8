"""The rounds as a table: per way and load the median over the rounds, with the least and the most."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from bench.dispatch.rounds import Round
from bench.dispatch.waits import Waits

NAMES: Final = {
    "puna": "Puna, measured",
    "ideal": "ideal central queue, computed",
    "group": "random queue group, computed",
    "heartbeats": "least loaded by heartbeats of 1 s, computed",
}
RATIO_FROM_MS: Final = 20.0
"""A ratio to the ideal is told where its p99 is at least this. Below, all that there is to compare is the handing over
itself, a few milliseconds, against nothing."""


def cases(rounds: Iterable[Round]) -> list[list[Round]]:
    """The rounds of each way, load and number of frozen nodes."""
    ordered = sorted(rounds, key=_case)
    return [list(group) for _, group in groupby(ordered, key=_case)]


def _case(round_: Round) -> tuple[int, str, float]:
    return round_.frozen_nodes, round_.way, round_.load


def middle(values: Iterable[float]) -> float:
    """The median; not a number where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def text(rounds: Sequence[Round], mean_s: float) -> Iterator[str]:
    """For people."""
    for case in cases(rounds):
        yield from _case_text(case, mean_s)
        yield ""


def _case_text(case: Sequence[Round], mean_s: float) -> Iterator[str]:
    first = case[0]
    frozen = f", {first.frozen_nodes} nodes frozen after a third of the time" if first.frozen_nodes else ""
    sent, lost = sum(each.sent for each in case), sum(each.lost for each in case)
    again = sum(each.retried for each in case)
    cut = sum(each.cut for each in case)
    counts = (
        f"{sent} requests in {len(case)} rounds, {lost} lost, {cut} cut in mid-stream with an error, {again} repeated"
    )
    yield f"{first.load:.0%} load, by the {first.way}{frozen}: {counts}"
    yield f"  {'waiting, ms':<46}{'p50':>9}{'p99':>10}{'max':>10}   p99 of each round"
    for name, shown in NAMES.items():
        yield _row(shown, [each.policies[name] for each in case])
    yield f"  {_verdict(case, mean_s)}"
    cores = ", ".join(f"{name} {middle(each.cores[name] for each in case):.2f}" for name in first.cores)
    yield f"  cores used: {cores}; everybody else {middle(each.others_cores for each in case):.2f}"
    for error, count in sorted(_errors(case).items()):
        yield f"  LOST: {count} of {error}"


def _row(shown: str, waits: Sequence[Waits]) -> str:
    p50, p99, most = (middle(getattr(each, name) for each in waits) for name in ("p50", "p99", "max"))
    each_round = " ".join(f"{each.p99:.1f}" for each in waits)
    return f"  {shown:<46}{p50:>9.2f}{p99:>10.1f}{most:>10.1f}   {each_round}"


def _verdict(case: Sequence[Round], mean_s: float) -> str:
    figures = summary(case)
    over_ms = figures["over_ideal_p99_ms"]
    ideal = f"p99 is {over_ms:.1f} ms ({over_ms / mean_s / 10:.2f} % of a mean service) over the ideal's"
    ratio = figures["ratio_ideal"]
    ideal += (
        f", {ratio:.3f} times it" if ratio is not None else "; hardly anybody waits in the ideal, so there is no ratio"
    )
    return f"{ideal}; 1/{1 / figures['ratio_group']:.0f} of the queue group's" if figures["ratio_group"] else ideal


def _errors(case: Sequence[Round]) -> dict[str, int]:
    names = {name for each in case for name in each.errors}
    return {name: sum(each.errors.get(name, 0) for each in case) for name in names}


def summary(case: Sequence[Round]) -> dict[str, Any]:
    """The figures of one case: medians over its rounds. `ratio_ideal` is None where nobody waits in the ideal."""
    first = case[0]
    worth = all(each.policies["ideal"].p99 >= RATIO_FROM_MS for each in case)
    return {
        "way": first.way,
        "load": first.load,
        "frozen_nodes": first.frozen_nodes,
        "rounds": len(case),
        "sent": sum(each.sent for each in case),
        "lost": sum(each.lost for each in case),
        "cut": sum(each.cut for each in case),
        "retried": sum(each.retried for each in case),
        "p99_ms": {name: middle(each.policies[name].p99 for each in case) for name in NAMES},
        "p50_ms": {name: middle(each.policies[name].p50 for each in case) for name in NAMES},
        "over_ideal_p99_ms": middle(each.policies["puna"].p99 - each.policies["ideal"].p99 for each in case),
        "ratio_ideal": middle(each.ratio("ideal") for each in case) if worth else None,
        "ratio_group": middle(each.ratio("group") for each in case),
    }


def as_json(rounds: Sequence[Round]) -> dict[str, Any]:
    """For programs."""
    return {"cases": [summary(case) for case in cases(rounds)], "rounds": [each.as_json() for each in rounds]}
