"""Where `puna` keeps things on this machine: state of a running `puna up`, and files worth keeping."""

from __future__ import annotations

import os
from pathlib import Path


def _base(own: str, xdg: str, default: str) -> Path:
    if own_value := os.environ.get(own):
        return Path(own_value).expanduser().absolute()
    root = os.environ.get(xdg)
    return (Path(root).expanduser() if root else Path.home() / default).absolute() / "puna"


def default_state_dir() -> Path:
    """`PUNA_STATE_DIR`, else `puna` under the user's state folder."""
    return _base("PUNA_STATE_DIR", "XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    """`PUNA_CACHE_DIR`, else `puna` under the user's cache folder. All in it can be fetched again."""
    return _base("PUNA_CACHE_DIR", "XDG_CACHE_HOME", ".cache")


def shown(path: Path) -> str:
    """A path as a person would write it."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
