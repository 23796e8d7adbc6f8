"""When a node begins: not all at once after a power cut, and each at the same moment every time."""

from __future__ import annotations


def stagger_s(node: str, longest_s: float) -> float:
    """Seconds that a node waits after its start: a hash of its name, h = 31h + c over 32 bits, within the longest."""
    hashed = 0
    for char in node:
        hashed = (hashed * 31 + ord(char)) & 0xFFFFFFFF
    return float(hashed % longest_s) if longest_s > 0 else 0.0
