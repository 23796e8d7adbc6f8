"""Headers that somebody made to do harm: what becomes of 100,000 of them.

`python -m bench.hostile [--count 100000] [--seed 1]` makes headers of GGUF, safetensors and `config.json` from a seed,
gives each to what a worker gives a model's file to, and prints one line of JSON. Each must be refused with a reason, or
be right in every detail that is checked here once more; with no other exception, in little time and memory. It exits
with 1 otherwise, and names the seed of the case.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from worker.gguf import TENSOR_TYPES, BadGguf, Gguf, read_header
from worker.hubconfig import BadConfig, read_config
from worker.memory import Serving, plan
from worker.modelfile import describe
from worker.safetensors import BadSafetensors, read_safetensors

MEMORY_LIMIT_BYTES: Final = 64 << 20
CPU_LIMIT_S: Final = 5.0
TRACED_SHARE: Final = 16
"""Of so many cases one is run with its memory counted; those that are large always are."""
LARGE_BYTES: Final = 100_000
REASON_LIMIT: Final = 500
EDGES: Final = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 255, 256, 4095, 4096, 4097, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1,
)  # fmt: skip
ARCHITECTURES: Final = ("llama", "qwen3", "gemma3", "bert", "clip", "", "\0", "../../etc", "x" * 300, "lla\nma")
FORMS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


class Forge:
    """Makes hostile files from one seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def edge(self, most: int = (1 << 64) - 1) -> int:
        """A number where things go wrong."""
        dice = self.dice
        value = dice.choice(EDGES) if dice.random() < 0.7 else dice.randrange(1 << dice.randint(1, 64))
        return min(value, most)

    def lie(self, truth: int, share: float = 0.04, most: int = (1 << 64) - 1) -> int:
        """Mostly the truth."""
        return self.edge(most) if self.dice.random() < share else truth

    def text(self, value: str | bytes, share: float = 0.02) -> bytes:
        """A string whose length may lie."""
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return struct.pack("<Q", self.lie(len(raw), share)) + raw

    # -- GGUF --------------------------------------------------------------------------------------------------------
    def gguf(self) -> bytes:
        """A GGUF file, hostile in some way, or by luck not."""
        pairs, rows = self.pairs(), self.rows()
        made = b"".join(pairs) + b"".join(row for row, _ in rows)
        head = b"GGUF" + struct.pack("<IQQ", self.lie(3, 0.02, 0xFFFFFFFF), self.lie(len(rows)), self.lie(len(pairs)))
        data = max((end for _, end in rows), default=0)
        file = head + made
        file += bytes(-len(file) % 32) + bytes(min(data, 1 << 16))
        return self.damaged(file)

    def pairs(self) -> list[bytes]:
        """Metadata: what a model says of itself, some of it nonsense."""
        dice = self.dice
        name = dice.choice(ARCHITECTURES[:5]) if dice.random() < 0.9 else dice.choice(ARCHITECTURES)
        keys = [f"{name}.{key}" for key in _KEYS if dice.random() < 0.7]
        made = [self.pair("general.architecture", 8, self.text(name))] if dice.random() < 0.95 else []
        made += [self.pair(key, *self.value(key)) for key in keys]
        made += [self.pair(dice.choice(_OTHERS), *self.value("")) for _ in range(dice.randint(0, 3))]
        if dice.random() < 0.03:
            made += [self.pair("bomb", 8, self.bomb())]
        if dice.random() < 0.03 and made:
            made.append(dice.choice(made))
        return made

    def pair(self, key: str, kind: int, value: bytes) -> bytes:
        """One key with its value."""
        return self.text(key) + struct.pack("<I", self.lie(kind, 0.01, 0xFFFFFFFF)) + value

    def value(self, key: str) -> tuple[int, bytes]:
        """A kind and a value of it; for a key that is known mostly a small number."""
        dice = self.dice
        if key and dice.random() < 0.8:
            return 4, struct.pack("<I", dice.choice((1, 2, 4, 64, 128, 4096)))
        kind = dice.choice((*FORMS, 8, 9))
        if kind == 8:
            return 8, self.text(dice.choice(("", "a", "\ufffd" * 50, "x" * 5000)))
        if kind == 9:
            return 9, self.array(dice.randint(0, 5))
        return kind, self.scalar(kind)

    def scalar(self, kind: int) -> bytes:
        """Any bits of that kind: not-a-numbers and negative counts among them."""
        form = "<" + FORMS[kind]
        return self.dice.randbytes(struct.calcsize(form)) if self.dice.random() < 0.5 else bytes(struct.calcsize(form))

    def array(self, depth: int) -> bytes:
        """An array, perhaps of arrays."""
        dice = self.dice
        if depth > 3 or (depth and dice.random() < 0.3):
            inner = self.array(depth - 1)
            return struct.pack("<IQ", 9, self.lie(1, 0.3)) + inner
        if dice.random() < 0.5:
            count = dice.choice((0, 1, 2, 5, 300))
            return struct.pack("<IQ", 8, self.lie(count, 0.1)) + b"".join(self.text("t", 0.005) for _ in range(count))
        kind, count = dice.choice(tuple(FORMS)), dice.choice((0, 1, 2, 64))
        return struct.pack("<IQ", kind, self.lie(count, 0.1)) + b"".join(self.scalar(kind) for _ in range(count))

    def bomb(self) -> bytes:
        """A string that takes four times its size in memory."""
        return self.text("\U0001f4a3" + "x" * self.dice.choice((300_000, 2_000_000)))

    def rows(self) -> list[tuple[bytes, int]]:
        """The tensor table, and where each tensor ends."""
        made: list[tuple[bytes, int]] = []
        at = 0
        for number in range(self.dice.choice((0, 1, 2, 3, 40))):
            kind = self.lie(self.dice.choice(tuple(TENSOR_TYPES)), 0.02, 0xFFFFFFFF)
            _, block, block_bytes = TENSOR_TYPES.get(kind, ("", 1, 1))
            shape = tuple(
                self.lie(each, 0.02) for each in (block * self.dice.choice((1, 2)), 2, 1, 1)[: self.edge(4) or 1]
            )
            size = 1
            for each in shape:
                size *= each
            place = self.lie(at, 0.04)
            name = f"t{number}" if self.dice.random() < 0.98 else "t0"
            row = self.text(name) + struct.pack("<I", self.lie(len(shape), 0.01, 0xFFFFFFFF))
            row += struct.pack(f"<{len(shape)}QIQ", *shape, kind, place)
            at += -(-(size // block * block_bytes) // 32) * 32
            at = min(at, (1 << 64) - 64)
            made.append((row, at))
        return made

    def damaged(self, file: bytes) -> bytes:
        """Cut, overwritten, or as it is."""
        dice, raw = self.dice, bytearray(file)
        way = dice.random()
        if way < 0.1:
            return file[: dice.randrange(len(file) + 1)]
        if way < 0.3:
            for _ in range(dice.randint(1, 6)):
                at = dice.randrange(len(raw))
                raw[at : at + 8] = dice.choice(
                    (b"\xff" * 8, bytes(8), dice.randbytes(8), struct.pack("<Q", self.edge()))
                )
        elif way < 0.33:
            return file[:4] + dice.randbytes(dice.randint(0, 2000))
        return bytes(raw)

    # -- JSON --------------------------------------------------------------------------------------------------------
    def safetensors(self) -> bytes:
        """A safetensors file, hostile in some way, or by luck not."""
        rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for number in range(self.dice.randint(0, 6)):
            end = at + 2 * 4 * 3
            offsets = [self.lie(at), self.lie(end)] if self.dice.random() < 0.95 else self.junk(3)
            shape = [self.lie(4), 3] if self.dice.random() < 0.95 else self.junk(3)
            rows[f"t{number}"] = {"dtype": self.dice.choice(("F16", "BF16", "F32", "X")), "shape": shape}
            rows[f"t{number}"]["data_offsets"] = offsets
            at = end
        if self.dice.random() < 0.1:
            rows["junk"] = self.junk(4)
        text = json.dumps(rows).encode()
        text = b"[" * self.dice.choice((100, 100_000)) if self.dice.random() < 0.02 else text
        return self.damaged(struct.pack("<Q", self.lie(len(text))) + text + bytes(at))

    def config(self) -> bytes:
        """A config.json that says nonsense here and there."""
        keys = ("architectures", "model_type", "max_position_embeddings", "hidden_size", "text_config", "vision_config")
        told = {key: self.junk(3) for key in keys if self.dice.random() < 0.7}
        return self.damaged(json.dumps(told).encode() or b"{")

    def junk(self, depth: int) -> Any:
        """Any JSON."""
        dice = self.dice
        kind = dice.randrange(7 if depth else 5)
        if kind == 5:
            return [self.junk(depth - 1) for _ in range(dice.randint(0, 3))]
        if kind == 6:
            return {dice.choice(("a", "dtype", "hidden_size", "\0")): self.junk(depth - 1) for _ in range(2)}
        return (None, True, self.edge(), -self.edge(), dice.choice(("", "LlamaForCausalLM", "x" * 900, "\ud800")))[kind]


_KEYS: Final = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.sliding_window", "attention.sliding_window_pattern",
    "pooling_type",
)  # fmt: skip
_OTHERS: Final = ("general.name", "general.alignment", "tokenizer.ggml.tokens", "tokenizer.chat_template", "x" * 300)


# -- judging -----------------------------------------------------------------------------------------------------------
class Harm(Exception):
    """A case was not refused and is not right, or cost too much."""


def judged_gguf(path: Path) -> str:
    """The reason of the refusal, or that it is right. Raises `Harm`."""
    try:
        model = describe(path)
    except BadGguf as error:
        return _reason(error)
    header = read_header(path)
    check_right(header)
    if plan(model, Serving(4096, 1)).total_bytes < 0 or len(json.dumps(model.architecture)) > 100:
        raise Harm("its description cannot be right")
    return "right"


def check_right(header: Gguf) -> None:
    """Look at an accepted header once more, by other means. Raises `Harm`."""
    taken: list[tuple[int, int]] = []
    sizes = {name: (block, block_bytes) for name, block, block_bytes in TENSOR_TYPES.values()}
    for tensor in header.tensors:
        block, block_bytes = sizes[tensor.type_name]
        elements = 1
        for each in tensor.shape:
            elements *= each
        start = header.data_offset + tensor.offset
        if elements <= 0 or elements % block or elements // block * block_bytes != tensor.size_bytes:
            raise Harm(f"{tensor.name!r} has a size that its shape does not take")
        if start + tensor.size_bytes > header.file_bytes:
            raise Harm(f"{tensor.name!r} lies beyond the file")
        taken.append((start, start + tensor.size_bytes))
    taken.sort()
    if any(begin < end for (_, end), (begin, _) in pairwise(taken)):
        raise Harm("tensors overlap")


def judged_safetensors(path: Path) -> str:
    """The same for safetensors."""
    try:
        told = read_safetensors(path)
    except BadSafetensors as error:
        return _reason(error)
    if not 0 <= told.tensor_bytes <= path.stat().st_size:
        raise Harm("its tensors take more than the file has")
    return "right"


def judged_config(path: Path) -> str:
    """The same for config.json."""
    try:
        read_config(path)
    except BadConfig as error:
        return _reason(error)
    return "right"


def _reason(error: Exception) -> str:
    text = str(error)
    if not 0 < len(text) < REASON_LIMIT:
        raise Harm(f"a reason of {len(text)} characters")
    return text


KINDS: Final[tuple[tuple[float, Callable[[Forge], bytes], Callable[[Path], str]], ...]] = (
    (0.8, Forge.gguf, judged_gguf),
    (0.95, Forge.safetensors, judged_safetensors),
    (1.0, Forge.config, judged_config),
)


@dataclass(slots=True)
class Tally:
    """What became of them."""

    cases: int = 0
    right: int = 0
    slowest_cpu_s: float = 0.0
    most_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])

    def told(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "cases": self.cases,
            "refused": self.cases - self.right,
            "right": self.right,
            "different_reasons": len(self.reasons),
            "slowest_cpu_ms": round(self.slowest_cpu_s * 1000, 1),
            "most_traced_mib": round(self.most_bytes / 2**20, 1),
            "most_resident_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


def run(folder: Path, count: int, seed: int = 1) -> Tally:
    """Make and judge so many. Raises `Harm` that names the case."""
    tally = Tally()
    for number in range(seed, seed + count):
        forge = Forge(number)
        share = forge.dice.random()
        _, make, judge = next(kind for kind in KINDS if share < kind[0])
        data = make(forge)
        path = folder / "model"
        path.write_bytes(data)
        try:
            outcome = _measured(tally, judge, path, traced=len(data) > LARGE_BYTES or number % TRACED_SHARE == 0)
        except Exception as error:
            raise Harm(f"seed {number} ({make.__name__}, {len(data)} bytes): {error!r}") from error
        tally.cases += 1
        tally.right += outcome == "right"
        tally.reasons["".join(each for each in outcome if not each.isdigit())[:30]] += 1
    return tally


def _measured(tally: Tally, judge: Callable[[Path], str], path: Path, *, traced: bool) -> str:
    if traced:
        tracemalloc.start()
    begun_s = time.thread_time()
    try:
        return judge(path)
    finally:
        took_s = time.thread_time() - begun_s
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
        tally.slowest_cpu_s, tally.most_bytes = max(tally.slowest_cpu_s, took_s), max(tally.most_bytes, peak)
        if peak > MEMORY_LIMIT_BYTES or took_s > CPU_LIMIT_S:
            raise Harm(f"it took {peak >> 20} MiB and {took_s:.1f} s")


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Hostile headers of model files")
    parser.add_argument("--count", type=int, default=100_000, help="how many headers")
    parser.add_argument("--seed", type=int, default=1, help="of the first one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            tally = run(Path(folder), given.count, given.seed)
        except Harm as harm:
            print(harm, file=sys.stderr)
            return 1
    print(json.dumps(tally.told()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
