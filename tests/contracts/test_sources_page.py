"""The page of sources names every scheme, parameter and variable that the programs read."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.source import SCHEMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sources.md").read_text()
CODE = "\n".join(path.read_text() for path in (ROOT / "worker" / "sources").glob("*.py"))


def test_every_scheme_has_its_row() -> None:
    assert [scheme for scheme in SCHEMES if f"`{scheme}://" not in PAGE] == []


def test_every_parameter_that_a_source_reads_is_told() -> None:
    read = set(re.findall(r"""parameters\.get\(["'](\w+)["']""", CODE))
    assert len(read) > 4
    assert [name for name in sorted(read) if f"`{name}`" not in PAGE and f"parameters.{name}`" not in PAGE] == []


def test_every_variable_that_a_source_reads_is_told() -> None:
    called = " ".join(re.findall(r"variable\(([^()]*)\)", CODE))
    read = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', called)) | {"OCI_CONFIG_FILE", "PUNA_MOUNTS_DIR"}
    assert len(read) > 10
    assert [name for name in sorted(read) if f"`{name}`" not in PAGE] == []
