"""Writes the traces beside it: `python tests/worker/traces/make.py`. The seed is fixed, so it writes the same again.

A trace is a line a request, `<seconds> <model>`.

turns.txt   ten models asked in turn, forty rounds, a request every 20 s
bursts.txt  ten models of zipf popularity (exponent 1.1), which drifts; bursts of about six requests within some seconds
mixed.txt   the same popularity, twice as many bursts, each a third as long: models alternate faster than they load
"""

from __future__ import annotations

import random
from pathlib import Path

MODELS = [f"m{number}" for number in range(10)]
FOLDER = Path(__file__).parent
SEED = 20261121


def turns() -> list[tuple[float, str]]:
    """One after the other."""
    return [(20.0 * number, MODELS[number % len(MODELS)]) for number in range(40 * len(MODELS))]


def bursts(count: int, gap_s: float, size: float, length_s: float) -> list[tuple[float, str]]:
    """Bursts of one model each; every hundred of them two models change places in popularity."""
    rng = random.Random(SEED)
    order, weights = list(MODELS), [1 / (rank + 1) ** 1.1 for rank in range(len(MODELS))]
    now, found = 0.0, list[tuple[float, str]]()
    for number in range(count):
        if number % 100 == 99:
            one, other = rng.sample(range(len(order)), 2)
            order[one], order[other] = order[other], order[one]
        now += rng.expovariate(1 / gap_s)
        model = rng.choices(order, weights)[0]
        requests = 1 + int(rng.expovariate(1 / size))
        found += [(now + rng.uniform(0, length_s), model) for _ in range(requests)]
    return sorted(found)


def main() -> None:
    """Write them."""
    traces = {"turns": turns(), "bursts": bursts(500, 25.0, 6.0, 8.0), "mixed": bursts(1000, 12.0, 3.0, 4.0)}
    for name, rows in traces.items():
        text = "".join(f"{at:.2f} {model}\n" for at, model in rows)
        (FOLDER / f"{name}.txt").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
