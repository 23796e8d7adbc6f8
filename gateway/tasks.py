"""Tasks as they are sent: checked here first, so that a mistake is told at once and not found in the dead letters."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import orjson

from bus.connection import Bus
from schemas.subjects import check_node_id
from schemas.task import TaskOp, read_task


async def send_task(bus: Bus, op: TaskOp, body: Mapping[str, Any], *, node: str | None = None) -> str:
    """Put a task into the stream, for any eligible node or for one; returns its id, which follows from the content: the
    same task, sent twice while it is under way, is one. Raises `InvalidRequest`, `InvalidName`, `BusUnavailable`.
    """
    if node is not None:
        check_node_id(node)
    payload = orjson.dumps(dict(body))
    task = read_task(op, payload, node)
    await bus.js_publish(bus.names.task(op, node), payload, msg_id=secrets.token_hex(12))
    return task.id or ""


def derived_task(op: TaskOp, body: Mapping[str, Any], node: str | None = None) -> str:
    """The id that a task will have. Raises `InvalidRequest`."""
    return read_task(op, orjson.dumps(dict(body)), node).id or ""
