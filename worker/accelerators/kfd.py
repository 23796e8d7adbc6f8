"""AMD's GPUs as the ROCm runtime will see them: the compute nodes of the kernel driver, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.accelerators.figures import line_of

NODES: Final = "class/kfd/kfd/topology/nodes"
_PROPERTIES_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Node:
    """One GPU. `index` is ROCm's number for it."""

    index: int
    pci: str
    uuid: str | None
    """`GPU-` and 16 hex digits, as `ROCR_VISIBLE_DEVICES` takes it. Many consumer GPUs have none."""
    target: str
    """`gfx1100`."""
    unified_memory: bool


def nodes(root: Path) -> Iterator[Node]:
    """GPUs among the nodes; a node that a container may not use shows no properties and has no number."""
    index = 0
    for folder in sorted(root.glob(f"{NODES}/[0-9]*"), key=lambda each: (len(each.name), each.name)):
        facts = _properties(folder / "properties")
        if facts.get("simd_count", 0) > 0:
            yield _node(index, facts, line_of(folder / "name"))
            index += 1


def _properties(file: Path) -> dict[str, int]:
    try:
        with file.open(errors="replace") as opened:
            lines = opened.read(_PROPERTIES_BYTES).splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isascii() and pair[1].isdigit()}


def _node(index: int, facts: dict[str, int], name: str | None) -> Node:
    place, unique = facts.get("location_id", 0), facts.get("unique_id", 0)
    version = facts.get("gfx_target_version", 0)
    target = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else name or "GPU"
    return Node(
        index=index,
        pci=f"{facts.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}",
        uuid=f"GPU-{unique:016x}" if unique else None,
        target=target,
        unified_memory=facts.get("cpu_cores_count", 0) > 0,
    )
