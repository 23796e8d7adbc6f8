"""The figures as a text for people and as one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from bench.overhead import figures
from bench.overhead.figures import Figure, Reading, Samples
from bench.overhead.load import Load, Sample

NOISY_CORES: Final = 0.15
"""Strangers' CPU time, in cores, above which a run is called noisy."""


def rows(samples: Samples) -> Iterator[tuple[str, str, Figure | None]]:
    """(way, what, figure), for one load."""
    for way in samples.ways:
        for what, reading in _timings():
            yield way, what, samples.figure(way, reading)
        yield from _costs(samples, way)
    yield from _comparisons(samples)


def _timings() -> list[tuple[str, Reading]]:
    return [
        ("first chunk, median, ms", figures.first_ms),
        ("gap, median, ms", lambda sample: sample.seen.gap_ms.p50),
        ("gap, p99, ms", lambda sample: sample.seen.gap_ms.p99),
        ("engine to client, median, ms", figures.delay_ms),
        ("engine to client, p99, ms", lambda sample: sample.seen.delay_ms.p99),
        ("chunks/s", figures.chunks_per_s),
    ]


def _costs(samples: Samples, way: str) -> Iterator[tuple[str, str, Figure | None]]:
    for name in samples.of(way)[0].cost.cpu_s:
        yield way, f"chunks per CPU second, {name}", samples.figure(way, figures.per_cpu_s(name))
    if len(samples.of(way)[0].between) > 1:
        yield way, "chunks per CPU second, whole path", samples.figure(way, figures.between)
    for name in samples.of(way)[0].between:
        yield way, f"memory, {name}, MiB", samples.figure(way, figures.rss_mib(name))


def _comparisons(samples: Samples) -> Iterator[tuple[str, str, Figure | None]]:
    for way in samples.ways:
        if way == "direct":
            continue
        yield f"{way} - direct", "first chunk, median, ms", samples.added(way, figures.first_ms, "direct")
        yield f"{way} - direct", "engine to client, median, ms", samples.added(way, figures.delay_ms, "direct")
        yield f"{way} ÷ direct", "chunks/s", samples.ratio(way, figures.chunks_per_s, "direct")
        engine = figures.per_cpu_s("engine")
        yield f"{way} ÷ direct", "chunks per CPU second, engine", samples.ratio(way, engine, "direct")
    gateway, nginx = figures.per_cpu_s("gateway"), figures.per_cpu_s("nginx")
    if {"puna", "nginx"} <= set(samples.ways):
        yield "gateway ÷ nginx", "chunks per CPU second", samples.ratio("puna", gateway, "nginx", nginx)
        yield "whole path ÷ nginx", "chunks per CPU second", samples.ratio("puna", figures.between, "nginx")


def text(loads: Sequence[Load], samples: Sequence[Sample]) -> Iterator[str]:
    """The lines for a terminal."""
    for load in loads:
        yield f"\n{load.name}"
        for way, what, figure in rows(_of(load, samples)):
            if figure is not None:
                yield f"  {way:<18} {what:<38} {_shown(figure)}"
    yield from _warnings(samples)


def _shown(figure: Figure) -> str:
    digits = 0 if figure.median >= 1000 else 1 if figure.median >= 100 else 3
    return f"{figure.median:>10.{digits}f}   ({figure.least:.{digits}f} … {figure.most:.{digits}f})"


def _warnings(samples: Sequence[Sample]) -> Iterator[str]:
    for sample in samples:
        where = f"{sample.load}, {sample.way}, round {sample.round + 1}"
        if sample.seen.faults:
            yield f"FAULTS in {where}: {faults_of(sample)}"
        if sample.others_share > NOISY_CORES:
            yield f"noisy: {where}: others used {sample.others_share:.2f} cores"


def faults_of(sample: Sample) -> str:
    """Its faults by name, those that are not zero."""
    seen = sample.seen
    named = {**seen.errors, "missing [DONE]": seen.missing_done, "out of order": seen.disordered}
    shown = ", ".join(f"{name} {count}" for name, count in named.items() if count)
    return f"{shown} (last bad status {seen.bad_status})" if seen.bad_status else shown


def as_json(loads: Sequence[Load], samples: Sequence[Sample]) -> dict[str, Any]:
    """Everything: figures by load, and each sample as it was seen."""
    return {
        "figures": {load.name: [_entry(*row) for row in rows(_of(load, samples))] for load in loads},
        "faults": figures.faults(samples),
        "samples": [_plain(sample) for sample in samples],
    }


def _entry(way: str, what: str, figure: Figure | None) -> dict[str, Any]:
    return {"way": way, "what": what, **(asdict(figure) if figure else {})}


def _plain(sample: Sample) -> dict[str, Any]:
    run = {"load": sample.load, "way": sample.way, "round": sample.round, "others_cores": sample.others_share}
    return {**run, "seen": sample.seen.model_dump(exclude_unset=True), "cost": asdict(sample.cost)}


def _of(load: Load, samples: Sequence[Sample]) -> Samples:
    return Samples(sample for sample in samples if sample.load == load.name)
