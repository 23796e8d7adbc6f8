"""How much of a file may be asked for, and how much may have come and not be written yet: that is what a sudden end
loses. Plain.

Half of a hundredth of the file may be in memory, and as much in the system's buffers for all connections together; but
never so little that it could not flow. Where the way is long the system's buffers are left alone: a small one would
slow it down, and what is under way is then in the network and not on this machine.
"""

from __future__ import annotations

from typing import Final

LOST_PART: Final = 100
"""One of so many bytes may be lost with a process that is killed."""
MEMORY_LEAST_BYTES: Final = 512 << 10
SYSTEM_LEAST_BYTES: Final = 128 << 10
PIECE_LEAST_BYTES: Final = 4 << 20
PIECES: Final = 256
PIECE_BYTES_PER_S: Final = 3_000_000_000
"""Ten times what one connection brings at its best: so a request's round trip is a tenth of its piece's time."""
FASTEST_BYTES_PER_S: Final = 1_250_000_000
"""What all connections of a file should be able to carry together: 10 Gbit/s, with as much again to spare."""


def memory_bytes(size: int | None, most: int) -> int:
    """What a transfer may hold in buffers; `most` is what the node gives to one."""
    return most if size is None else min(max(size // (2 * LOST_PART), MEMORY_LEAST_BYTES), most)


def system_bytes(size: int | None, connections: int, round_trip_s: float | None, most: int) -> int | None:
    """What to ask the system to buffer for each of so many connections; it takes up to twice that. `most` is what it
    gives to whoever asks. None: let it find out by itself."""
    if round_trip_s is None:
        return None
    flow = int(2 * FASTEST_BYTES_PER_S * round_trip_s / connections)
    share = (size or 0) // (4 * LOST_PART * connections)
    return None if flow > most else min(max(flow, share, SYSTEM_LEAST_BYTES), most)


def piece_bytes(size: int, round_trip_s: float | None, most: int) -> int:
    """What one connection asks for at a time. Small pieces keep what comes close together, so that digests can follow;
    on a long way, where each request costs time, and of a very large file they are larger."""
    flow = most if round_trip_s is None else int(PIECE_BYTES_PER_S * round_trip_s)
    return min(max(size // PIECES, flow, PIECE_LEAST_BYTES), most)
