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
    """Put a task into the stream, for any eligible node or for one; returns its id.

    For one node it gets an id of its own, as the same task may be wanted on another; else it follows from the content,
    so that the same task, sent twice while it is under way, is one. Raises `InvalidRequest`, `InvalidName`,
    `BusUnavailable`.
    """
    if node is not None:
        check_node_id(node)
        body = {"id": f"{op.replace('_', '-')}-{secrets.token_hex(6)}", **body}
    payload = orjson.dumps(dict(body))
    task = read_task(op, payload)
    await bus.js_publish(bus.names.task(op, node), payload, msg_id=secrets.token_hex(12))
    return task.id or ""


def derived_task(op: TaskOp, body: Mapping[str, Any]) -> str:
    """The id that a task for any node will have. Raises `InvalidRequest`."""
    return read_task(op, orjson.dumps(dict(body))).id or ""
