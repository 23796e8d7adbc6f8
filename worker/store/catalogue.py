"""The copies as models that this node serves: what its settings name, and what is on its disks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from worker.flags import FlagRefused
from worker.remoteflags import check_remote
from worker.settings import ModelSettings
from worker.sources import Role
from worker.store.manifest import Copy

log = logging.getLogger(__name__)


def merged(own: Iterable[ModelSettings], copies: Iterable[Copy]) -> list[ModelSettings]:
    """The settings' own models, then the copies that can be served. On a clash of names the settings win, and that is
    said."""
    entries = list(own)
    named = {entry.model for entry in entries}
    for copy in copies:
        if copy.model in named:
            fields = {"event": "copy_not_served", "model": copy.model, "reason": "the settings name a file for it"}
            log.warning("copy_not_served", extra=fields)
        elif copy.manifest.main and not copy.broken:
            entries += _served(copy)
    return entries


def _served(copy: Copy) -> list[ModelSettings]:
    try:
        return [entry_of(copy)]
    except FlagRefused as refused:
        fields = {"event": "copy_not_served", "model": copy.model, "reason": refused.message}
        log.warning("copy_not_served", extra=fields)
        return []


def entry_of(copy: Copy) -> ModelSettings:
    """How a copy is served: its profile, and the flags for what lies beside its main file. It is started when it is
    asked for, unless its profile says `preload`: a disk holds more models than a GPU. Raises `FlagRefused` for a
    profile with a flag that is for the settings file alone."""
    profile = copy.manifest.profile
    check_remote(profile.flags)
    flags: dict[str, Any] = {}
    for role, flag in _BESIDE:
        path = copy.role(role)
        flags |= {flag: str(path)} if path else {}
    given = {name.lstrip("-"): value for name, value in profile.flags.items()}
    chosen = {"preload": False} | {name: getattr(profile, name) for name in _SAME if name in profile.model_fields_set}
    return ModelSettings.model_validate({"model": copy.model, "path": copy.main, "flags": given | flags, **chosen})


_BESIDE: Final[tuple[tuple[Role, str], ...]] = (("projector", "mmproj"), ("draft", "model-draft"))
_SAME: Final = (
    "context_tokens",
    "slots",
    "pinned",
    "preload",
    "idle_ttl_s",
    "cpu_fallback",
    "devices_per_engine",
)
