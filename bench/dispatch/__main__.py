"""`python -m bench.dispatch`: see bench/README.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
import uvloop

from bench.dispatch import fleet, report, rounds
from bench.dispatch.workload import MODEL, TOKENS_PER_S, Shape
from bench.processes import Children, StartFailed, measured_in

FAILURE: Final = 1
PROCESSES: Final = 4
FROZEN_LOAD_LIMIT: Final = 0.88
"""With a tenth of the nodes frozen, a higher load is more than the rest can do."""
REST_S: Final = 2.5
"""Between two rounds: what was frozen wakes, and hears that others have answered."""

Loads = Annotated[str, typer.Option(help="Shares of what all slots can do, with commas.")]
Nodes = Annotated[int, typer.Option(help="Simulated nodes.", min=2)]
Slots = Annotated[int, typer.Option(help="Slots of each.", min=1)]
Mean = Annotated[float, typer.Option(help="Mean seconds of a request in an engine.", min=0.01)]
Sigma = Annotated[float, typer.Option(help="Of the lognormal service times.", min=0.0)]
Rounds = Annotated[int, typer.Option("--rounds", help="Rounds of each case, each with a seed of its own.", min=1)]
Seconds = Annotated[float, typer.Option(help="Time in which a round's requests come.", min=1.0)]
Ways = Annotated[str, typer.Option(help="line, gateway, or both with a comma.")]
Frozen = Annotated[float, typer.Option(help="Share of nodes that freeze in the cases with frozen nodes; 0: none.")]
Seed = Annotated[int, typer.Option(help="Of the first round.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")]
Logs = Annotated[Path | None, typer.Option(help="Keep logs and journals in this folder.")]


def dispatch(
    loads: Loads = "0.7,0.85,0.95",
    nodes: Nodes = 32,
    slots: Slots = 4,
    mean: Mean = 3.0,
    sigma: Sigma = 1.0,
    times: Rounds = 3,
    seconds: Seconds = 90.0,
    ways: Ways = "line,gateway",
    frozen: Frozen = 0.1,
    seed: Seed = 1,
    as_json: Json = False,
    logs: Logs = None,
) -> None:
    """Simulated nodes under load: waiting against an ideal central queue and a random queue group."""
    chosen = ways.split(",")
    if unknown := set(chosen) - {"line", "gateway"}:
        raise typer.BadParameter(f"no such way: {', '.join(sorted(unknown))}")
    shapes = [Shape(float(load), nodes * slots, mean, sigma, seconds) for load in loads.split(",")]
    apart = max(1, round(nodes * frozen)) if frozen else 0
    try:
        with measured_in(logs) as folder, Children(folder) as children:
            up = _started(children, nodes, slots, apart, "gateway" in chosen)
            seen = list(_rounds(up, chosen, shapes, range(seed, seed + times), freezes=apart > 0))
    except (StartFailed, ValueError) as error:
        _give_up(error)
    lines = [json.dumps(report.as_json(seen))] if as_json else list(report.text(seen, mean))
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(FAILURE if any(each.lost for each in seen) else 0)


def _give_up(error: Exception) -> NoReturn:
    sys.stderr.write(f"bench.dispatch: {error}\n")
    raise SystemExit(FAILURE)


def _started(children: Children, nodes: int, slots: int, apart: int, gateway: bool) -> fleet.Fleet:
    sizes = fleet.group_sizes(nodes, min(PROCESSES, nodes), apart)
    model = f"{MODEL},gib=1,tokens_per_s={TOKENS_PER_S:g}"
    arguments = ["--model", model, "--slots", str(slots)]
    return fleet.start(children, sizes, arguments, slots=slots, engines=nodes, gateway=gateway)


def _rounds(
    up: fleet.Fleet, ways: Sequence[str], shapes: Sequence[Shape], seeds: Sequence[int], *, freezes: bool
) -> Iterator[rounds.Round]:
    """The cases take turns within each round, so that a machine that is busy for a while spoils none alone."""
    cold = [shape for shape in shapes if shape.load <= FROZEN_LOAD_LIMIT] if freezes else []
    for number, seed in enumerate(seeds):
        for freeze, some in ((False, shapes), (True, cold)):
            for shape in some:
                for way in ways:
                    _progress(f"round {number + 1}: {shape.load:.0%} by the {way}{', nodes freeze' if freeze else ''}")
                    yield uvloop.run(rounds.run(up, way, shape, number, seed=seed, freeze=freeze))
                    fleet.settled(up, REST_S if freeze else 0.0)


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    typer.run(dispatch)
