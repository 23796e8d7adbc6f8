"""Settings that an operator keeps for a node in the bucket `puna_config`, under the node's id: YAML or JSON, as in its
file. They are read when the worker starts, and count more than the file and less than the environment.

Whoever may write the bucket must not become the owner of the machine by that: no path, no secret, and nothing of how
the node is reached or what it is, can be set so. What cannot be taken is not taken at all, and the node starts as its
own file says: one mistake must not end a fleet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args

from pydantic import BaseModel, SecretStr

from bus.connection import Bus
from bus.errors import BusDenied, NoStream
from bus.kv import Bucket
from schemas.config import ConfigError
from schemas.configtext import read_text
from schemas.subjects import encode
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

OWN: Final = frozenset(("node", "nats", "http", "models", "secrets", "state_dir"))
"""Groups that only the node's own file, environment and command line may set."""
NATS_WAIT_S: Final = 30.0
Again = Callable[[Mapping[str, Any]], WorkerSettings]


async def with_stored(settings: WorkerSettings, again: Again) -> WorkerSettings:
    """The settings with what is stored for their node, if there is something; `again(stored)` reads all of them.

    Raises `BusUnavailable` if NATS cannot be reached.
    """
    text = await _stored(settings)
    if text is None:
        return settings
    place = f"the stored settings of node {settings.node}"
    try:
        found = read_text(text, place, {}, {})
        wrong = sorted(refused(WorkerSettings, found))
        if wrong:
            raise ConfigError(f"{place}: {', '.join(wrong)}: only the node itself may set this")
        changed = again(found)
    except (ConfigError, OSError) as error:
        log.error("stored_settings_refused", extra={"event": "stored_settings_refused", "reason": str(error)})
        return settings
    log.info("stored_settings", extra={"event": "stored_settings", "keys": sorted(found)})
    return changed


async def _stored(settings: WorkerSettings) -> str | None:
    bus = await Bus.connect(settings.nats, name=f"puna-settings-{settings.node}", timeout_s=NATS_WAIT_S)
    try:
        entry = await Bucket(bus, bus.names.bucket_config).get(encode(settings.node))
    except (NoStream, BusDenied):  # the start itself tells all that is not allowed, soon
        return None
    finally:
        await bus.close()
    return None if entry is None else entry.value.decode(errors="replace")


def refused(model: type[BaseModel], values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The keys among the values that may not be stored: groups of the node's own, paths, secrets, and what is none of
    the settings' own names."""
    for key, value in values.items():
        field = model.model_fields.get(key)
        group = _group(field.annotation) if field is not None else None
        if field is None or (not path and key in OWN):
            yield f"{path}{key}"
        elif group is not None and isinstance(value, Mapping):
            yield from refused(group, cast(Mapping[str, Any], value), f"{path}{key}.")
        elif _guarded(field.annotation):
            yield f"{path}{key}"


def _group(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _guarded(annotation: Any) -> bool:
    """Whether a path or a secret may be in it."""
    group = _group(annotation)
    inner = [field.annotation for field in group.model_fields.values()] if group else get_args(annotation)
    return annotation in (Path, SecretStr) or any(map(_guarded, inner))
