"""`python -m bench.switches`: see bench/README.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
import yaml

from bench.dispatch import fleet
from bench.dispatch.driver import Outcome, drive, drive_in_turn
from bench.dispatch.gateway import gateway
from bench.dispatch.rounds import matched
from bench.dispatch.waits import Waits
from bench.dispatch.workload import TOKENS_PER_S
from bench.processes import Children, StartFailed, measured_in
from bench.switches.optimum import belady
from bench.switches.traces import KINDS, Trace, trace

FAILURE: Final = 1
ALL_KINDS: Final = ",".join(KINDS)
PATIENCE_S: Final = 120.0
DEVICE_GIB: Final = 24
MODEL_GIB: Final = 16
"""One to a device."""

Models = Annotated[int, typer.Option(help="How many models.", min=2)]
DeviceCount = Annotated[int, typer.Option("--devices", help="Devices of the one node; each has room for one model.")]
Count = Annotated[int, typer.Option("--requests", help="Requests of each trace.", min=1)]
Load = Annotated[float, typer.Option(help="Seconds that a model takes to load.", min=0.01)]
Service = Annotated[float, typer.Option(help="Seconds that a request takes in its engine.", min=0.01)]
Rate = Annotated[float, typer.Option(help="Requests a second of the zipf trace.", min=0.01)]
Kinds = Annotated[str, typer.Option("--traces", help=f"Of {', '.join(KINDS)}, with commas.")]
Seed = Annotated[int, typer.Option(help="Of the zipf trace.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")]
Logs = Annotated[Path | None, typer.Option(help="Keep logs and journals in this folder, one inside for each trace.")]


@dataclass(frozen=True, slots=True)
class Switches:
    """What one trace showed. `loads` are those of the fleet, `optimum` those of Belady over the same requests."""

    trace: str
    requests: int
    lost: int
    loads: int
    optimum: int
    waits: Waits

    @property
    def ratio(self) -> float:
        """Below 1 where requests that came later were served together with earlier ones of the same model."""
        return self.loads / self.optimum


def switches(
    models: Models = 10,
    devices: DeviceCount = 2,
    count: Count = 60,
    load: Load = 1.0,
    service: Service = 0.2,
    rate: Rate = 4.0,
    kinds: Kinds = ALL_KINDS,
    seed: Seed = 1,
    as_json: Json = False,
    logs: Logs = None,
) -> None:
    """Ask a simulated node for more models than it has room for, through the gateway; count the loads."""
    names = [f"model-{number}" for number in range(models)]
    try:
        traces = [trace(kind, names, count, service_s=service, rate_per_s=rate, seed=seed) for kind in kinds.split(",")]
        seen = [_measured(each, names, devices, load, logs) for each in traces]
    except (StartFailed, ValueError) as error:
        sys.stderr.write(f"bench.switches: {error}\n")
        raise SystemExit(FAILURE) from error
    lines = [json.dumps([asdict(each) | {"ratio": each.ratio} for each in seen])] if as_json else list(_text(seen))
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(FAILURE if any(each.lost for each in seen) else 0)


def _measured(asked: Trace, names: Sequence[str], devices: int, load_s: float, logs: Path | None) -> Switches:
    """On a fleet of its own: what earlier traces left would be an advantage, or none."""
    sys.stderr.write(f"{asked.name}: {len(asked.requests)} requests\n")
    with measured_in(logs and logs / asked.name) as folder, Children(folder) as children:
        config = folder / "simulation.yaml"
        config.write_text(yaml.safe_dump(_simulation(names, devices, load_s)))
        up = fleet.start(children, [1], ["--config", str(config)], slots=4, engines=0, gateway=True)
        outcome = uvloop.run(_driven(up, asked))
        events = up.events()
    loads = sum(event["event"] == "load" for event in events)
    waits = Waits.of([each.waited_s for each in matched(outcome, events)])
    lost = outcome.lost + len(asked.requests) - len(outcome.fates)
    return Switches(asked.name, len(asked.requests), lost, loads, belady(asked.models, devices), waits)


def _simulation(names: Sequence[str], devices: int, load_s: float) -> dict[str, object]:
    defaults = {"gib": MODEL_GIB, "load": load_s, "tokens_per_s": TOKENS_PER_S, "profile": {"preload": False}}
    models = dict.fromkeys(names, None)
    return {"devices": devices, "device_gib": DEVICE_GIB, "slots": 4, "defaults": defaults, "models": models}


async def _driven(up: fleet.Fleet, asked: Trace) -> Outcome:
    assert up.gateway_port is not None
    async with gateway(up.gateway_port) as door:
        if asked.at_once:
            return await drive_in_turn(door, asked.requests, at_once=asked.at_once, patience_s=PATIENCE_S)
        return await drive(door, asked.requests, patience_s=PATIENCE_S)


def _text(seen: Sequence[Switches]) -> Iterator[str]:
    yield f"{'trace':<12}{'requests':>9}{'lost':>6}{'loads':>7}{'optimum':>9}{'ratio':>7}   waiting p50, p99, max in s"
    for each in seen:
        waits = "  ".join(f"{value / 1000:.2f}" for value in (each.waits.p50, each.waits.p99, each.waits.max))
        figures = f"{each.requests:>9}{each.lost:>6}{each.loads:>7}{each.optimum:>9}{each.ratio:>7.2f}"
        yield f"{each.trace:<12}{figures}   {waits}"


if __name__ == "__main__":
    typer.run(switches)
