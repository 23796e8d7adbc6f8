"""The states of an engine and the legal moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.node import EngineState

MOVES: Final[Mapping[EngineState, frozenset[EngineState]]] = {
    "stopped": frozenset({"starting"}),
    "starting": frozenset({"ready", "crashed", "stopping"}),
    "ready": frozenset({"crashed", "stopping"}),
    "crashed": frozenset({"starting", "stopped"}),
    "stopping": frozenset({"stopped"}),
}
"""From each state to which. `crashed` waits for its next start; being asked to stop there ends at once."""


class IllegalMove(RuntimeError):
    """A fault in the run loop: a move that the table does not have."""


def check_move(old: EngineState, new: EngineState) -> None:
    """Raises `IllegalMove` unless the table has the move."""
    if new not in MOVES[old]:
        raise IllegalMove(f"an engine cannot go from {old} to {new}")
