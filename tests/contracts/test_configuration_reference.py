"""The configuration reference is what the settings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.path[:0] = ['docs', '.']; from generate_configuration import page; print(page(), end='')"


def test_the_reference_is_generated_from_the_settings() -> None:
    wanted = subprocess.check_output([sys.executable, "-c", PROGRAM], cwd=ROOT, text=True)
    assert (ROOT / "docs" / "configuration.md").read_text() == wanted, "run: python docs/generate_configuration.py"


def test_no_key_is_without_a_row() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for key in ("nats.url", "engine.startup_timeout_s", "models[].context_tokens", "http.listen", "spill_after_s"):
        assert f"`{key}`" in page
