"""A person's Hugging Face cache: `models--<owner>--<repo>/{blobs,refs,snapshots}`. Read, and never written to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def hub_caches(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where this user's cache is, as huggingface_hub finds it; nothing where there is none."""
    base = environ.get("XDG_CACHE_HOME")
    home = environ.get("HF_HOME") or str((Path(base) if base else Path.home() / ".cache") / "huggingface")
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or str(Path(home) / "hub")
    path = Path(named).expanduser()
    return (path,) if path.is_dir() else ()


def cached(caches: tuple[Path, ...], sha256: str, repo: str | None) -> list[Path]:
    """Files of the caches that say of themselves that they have this content, those of the repository first. Whether
    they do must be checked."""
    found: list[Path] = []
    for cache in caches:
        preferred = f"models--{repo.replace('/', '--')}" if repo else ""
        try:
            names = sorted((path.name for path in cache.iterdir()), key=lambda name: name != preferred)
        except OSError:
            continue
        found += [cache / name / "blobs" / sha256 for name in names if name.startswith("models--")]
    return [path for path in found if path.is_file() and not path.is_symlink()]
