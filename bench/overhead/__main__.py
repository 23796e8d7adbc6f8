"""`python -m bench.overhead`: see bench/README.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from bench.compiler import CompilerMissing, native
from bench.overhead import paths, real, report
from bench.overhead.load import ClientFailed, Load, Sample, run
from bench.processes import Children, StartFailed, measured_in

FAILURE: Final = 1
UNAVAILABLE: Final = 69
SHORT_ANSWER_CHUNKS: Final = 3
SPARE_SLOTS: Final = 8
"""Above the most streams, up to what a worker takes: a slot that is just being freed keeps no stream waiting."""
SLOTS_LIMIT: Final = 256

StreamCounts = Annotated[str, typer.Option(help="Numbers of streams, with commas.")]
Rounds = Annotated[int, typer.Option(help="Rounds; the ways take turns within each.", min=1)]
Seconds = Annotated[float, typer.Option(help="Measured time of each run.", min=0.5)]
WarmUp = Annotated[float, typer.Option(help="Time before it.", min=0.2)]
Rate = Annotated[float, typer.Option(help="Chunks a second of each stream.", min=0.1)]
AnswerChunks = Annotated[int, typer.Option(help="Chunks of each answer.", min=1)]
Ways = Annotated[str, typer.Option(help="Which ways, with commas.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")]
Logs = Annotated[Path | None, typer.Option(help="Keep the logs of all processes in this folder.")]
Real = Annotated[
    Path | None, typer.Option("--real", help="GGUF file: a real engine, fleet against direct.", exists=True)
]


def overhead(
    streams: StreamCounts = "1,32,256",
    rounds: Rounds = 3,
    seconds: Seconds = 5.0,
    warm_up: WarmUp = 2.0,
    rate: Rate = 50.0,
    answer_chunks: AnswerChunks = 400,
    ways: Ways = "direct,nginx,puna",
    as_json: Json = False,
    logs: Logs = None,
    real_model: Real = None,
) -> None:
    """Drive one load directly, through nginx and through Puna, and print what each adds and costs."""
    try:
        with measured_in(logs) as folder, Children(folder) as children:
            if real_model is not None:
                loads, samples = real.measured(children, native("client"), real_model, rounds, _progress)
            else:
                counts = [int(count) for count in streams.split(",")]
                loads = list(_loads(counts, seconds, warm_up, answer_chunks))
                env = {"FAKE_RATE": str(rate), "FAKE_CHUNKS": str(answer_chunks)}
                up = _started(children, ways.split(","), min(max(counts) + SPARE_SLOTS, SLOTS_LIMIT), env)
                samples = list(_rounds(up, loads, rounds))
    except CompilerMissing as error:
        _give_up(error, UNAVAILABLE)
    except (StartFailed, ClientFailed) as error:
        _give_up(error, FAILURE)
    _print(loads, samples, as_json)
    raise SystemExit(FAILURE if any(sample.seen.faults for sample in samples) else 0)


def _give_up(error: Exception, code: int) -> NoReturn:
    sys.stderr.write(f"bench.overhead: {error}\n")
    raise SystemExit(code)


def _loads(counts: Iterable[int], seconds: float, warm_up_s: float, answer_chunks: int) -> Iterator[Load]:
    """Short answers one after the other for the time to the first chunk; then each number of long streams."""
    yield Load("1 stream, short answers", 1, SHORT_ANSWER_CHUNKS, warm_up_s, seconds)
    for count in counts:
        yield Load(f"{count} stream{'s' * (count > 1)}", count, answer_chunks, warm_up_s, seconds)


def _started(children: Children, names: Sequence[str], slots: int, env: dict[str, str]) -> list[paths.Way]:
    engine = native("engine")
    straight = paths.direct(children, engine, env)
    makers: dict[str, Callable[[], paths.Way | None]] = {
        "direct": lambda: straight,
        "nginx": lambda: _nginx(children, straight),
        "puna": lambda: _puna(children, engine, slots, env),
    }
    if unknown := set(names) - set(makers):
        raise typer.BadParameter(f"no such way: {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    return [way for name in names if (way := makers[name]()) is not None]


def _nginx(children: Children, straight: paths.Way) -> paths.Way | None:
    program = paths.nginx_program()
    if program is None:
        _progress("nginx is not installed: left out")
        return None
    return paths.nginx(children, program, straight)


def _puna(children: Children, engine: Path, slots: int, env: dict[str, str]) -> paths.Way:
    model = children.folder / "fake.gguf"
    model.write_bytes(paths.EMPTY_GGUF)
    return paths.puna(children, model, slots=slots, engine=engine, env=env)


def _rounds(ways: Sequence[paths.Way], loads: Sequence[Load], rounds: int) -> Iterator[Sample]:
    client = native("client")
    for load in loads:
        for number in range(rounds):
            for way in ways:
                _progress(f"{load.name}, round {number + 1} of {rounds}: {way.name}")
                yield run(client, way, load, number)


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _print(loads: Sequence[Load], samples: Sequence[Sample], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(report.as_json(loads, samples)) + "\n")
        return
    for line in report.text(loads, samples):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    typer.run(overhead)
