"""Orders to one node by its control service, `puna.node.<node>.<verb>`; a refusal is the node's own error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import orjson

from bus.connection import Bus, Message
from bus.errors import NoResponders
from schemas.errors import PunaError, Unavailable, from_code
from schemas.subjects import H_SERVICE_ERROR, H_SERVICE_ERROR_CODE

ANSWER_S: Final = 5.0
"""Every verb answers at once; one that does not has a node that is frozen or gone."""


async def order(bus: Bus, node: str, verb: str, body: Mapping[str, Any], *, timeout_s: float = ANSWER_S) -> Any:
    """The node's JSON answer. Raises the error that the node named, `Unavailable` if it does not listen,
    `DeadlineExceeded`, `BusUnavailable`."""
    return orjson.loads(await order_raw(bus, node, verb, body, timeout_s=timeout_s))


async def order_raw(bus: Bus, node: str, verb: str, body: Mapping[str, Any], *, timeout_s: float = ANSWER_S) -> bytes:
    """The same, as the node wrote it."""
    try:
        answer = await bus.request(bus.names.node(node, verb), orjson.dumps(body), timeout_s=timeout_s)
    except NoResponders as error:
        raise Unavailable(f"node {node} does not listen to {verb!r}", retry_after_s=ANSWER_S) from error
    refused = refusal(answer)
    if refused is not None:
        raise refused
    return answer.payload


def refusal(answer: Message) -> PunaError | None:
    """The error that an answer stands for, or nothing."""
    headers = answer.headers or {}
    if H_SERVICE_ERROR not in headers:
        return None
    told = _error_object(answer.payload)
    message = str(told.get("message") or headers[H_SERVICE_ERROR])
    param = told.get("param")
    code = str(told.get("code") or "")
    error = from_code(code, message, param=param if isinstance(param, str) else None)
    status = headers.get(H_SERVICE_ERROR_CODE, "")
    return Unavailable(message) if status == str(Unavailable.http_status) and type(error) is PunaError else error


def _error_object(payload: bytes) -> dict[str, Any]:
    try:
        body: object = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return {}
    error = cast(dict[str, object], body).get("error") if isinstance(body, dict) else None
    return cast(dict[str, Any], error) if isinstance(error, dict) else {}
