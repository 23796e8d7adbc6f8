"""The page of the wire names every kind of event that a worker tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from schemas.model import CopyState

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "wire.md").read_text()
CODE = "\n".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))

COPY_STATES: tuple[str, ...] = get_args(CopyState)


def test_every_kind_that_is_told_is_on_the_page() -> None:
    kinds = set(re.findall(r"""tell\(\s*["']([a-z_]+)["']""", CODE)) | {f"copy_{each.lower()}" for each in COPY_STATES}
    kinds |= {f"task_{state}" for state in ("done", "failed", "cancelled", "dead")}
    assert len(kinds) > 20
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in PAGE] == []
