"""Reading what the fleet keeps in its buckets: nodes, copies, wanted models and tasks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from schemas.task import TaskRecord

if TYPE_CHECKING:
    from bus.connection import Bus
    from bus.kv import Entry
    from gateway.view import Moment


async def entries(bus: Bus, name: str) -> Mapping[str, Entry]:
    """All of a bucket; one that does not exist holds nothing: no node has ever joined. Raises `BusUnavailable`."""
    from bus.errors import JetStreamError
    from bus.kv import Bucket
    from bus.topology import STREAM_NOT_FOUND

    bucket = Bucket(bus, name)
    try:
        await bus.js_api(f"STREAM.INFO.{bucket.stream}")
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return {}
        raise
    return await bucket.entries()


async def read_moment(bus: Bus) -> Moment:
    """Nodes, and the files on their disks, as a gateway sees them."""
    import asyncio

    names = bus.names
    found = await asyncio.gather(*(entries(bus, each) for each in (names.bucket_nodes, *_of_models(bus))))
    return moment_of(bus, *found)


def _of_models(bus: Bus) -> tuple[str, str]:
    return bus.names.bucket_copies, bus.names.bucket_models


def moment_of(bus: Bus, nodes: Mapping[str, Entry], copies: Mapping[str, Entry], models: Mapping[str, Entry]) -> Moment:
    """The same out of the buckets' entries. A command has not seen how long a copy has been there; it counts as new."""
    from gateway.fleet import Roster
    from gateway.shelf import Shelver
    from gateway.view import Moment

    now, shelver = time.monotonic(), Shelver(bus.names)
    shelver.take_models(models)
    return Moment(Roster().take(nodes, now), shelver.take_copies(copies, now), now)


async def read_tasks(bus: Bus) -> list[TaskRecord]:
    """Every record of a task, the newest first."""
    found = [read_record(entry) for entry in (await entries(bus, bus.names.bucket_tasks)).values()]
    return sorted((record for record in found if record is not None), key=lambda record: -record.created)


def read_record(entry: Entry | None) -> TaskRecord | None:
    """A task's record; None for nothing, and for what is none."""
    try:
        return None if entry is None else TaskRecord.model_validate_json(entry.value)
    except ValidationError:
        return None
