"""Bodies of the control verbs: JSON, checked, and every refusal names its field."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import InvalidName, InvalidRequest, UnknownField
from schemas.openai import parse_object
from schemas.reply import Cancel
from schemas.subjects import check_request_id

BODY_LIMIT_BYTES: Final = 4096
LINES_LIMIT: Final = 1000

AnyOrder = TypeVar("AnyOrder", bound="Order")


class Order(BaseModel):
    """Base of the bodies, and the body of verbs that take no field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineOrder(Order):
    """Which engine: by its id, or by its model if that has one here; neither, the only one of the node where the verb
    allows it."""

    model: str | None = None
    engine: str | None = None


class LogsOrder(EngineOrder):
    """Whose last lines, how many, and whether those that come are sent too."""

    lines: int = Field(default=100, ge=1, le=LINES_LIMIT)
    follow: bool = False


class RestartOrder(EngineOrder):
    """Which engine to start again."""


class UnloadOrder(EngineOrder):
    """One engine, or all of a model."""


class LoadOrder(Order):
    """One engine of `model`, on exactly these devices if any are given."""

    model: str
    devices: tuple[str, ...] = Field(default=(), max_length=64)


class ExplainOrder(Order):
    """The model to explain."""

    model: str


class CheckOrder(Order):
    """The model to look at."""

    model: str


class FilesOrder(Order):
    """The model whose files to list."""

    model: str


class PageOrder(Order):
    """A page of an engine's own HTTP."""

    engine: str
    path: Literal["/props", "/slots", "/health", "/metrics", "/v1/models"]


def read_order(kind: type[AnyOrder], payload: bytes) -> AnyOrder:
    """The body of a verb; no body at all has every default. Raises `InvalidRequest` and its kinds."""
    try:
        return kind.model_validate(_object(payload))
    except ValidationError as error:
        raise _refusal(kind, error) from error


def read_cancel(payload: bytes) -> Cancel:
    """A request id as it is, or `{"request": ID, "epoch": N}`; further fields belong to a newer gateway.

    Raises `InvalidRequest`.
    """
    try:
        text = payload.strip()
        found = _object(text) if text.startswith(b"{") else {"request": text[:BODY_LIMIT_BYTES].decode()}
        order = Cancel.model_validate(found)
        check_request_id(order.request)
    except ValidationError as error:
        raise _refusal(Cancel, error) from error
    except (InvalidName, UnicodeDecodeError) as error:
        raise InvalidRequest('send the request id, or {"request": ID}', param="request") from error
    return order


def _object(payload: bytes) -> dict[str, Any]:
    if len(payload) > BODY_LIMIT_BYTES:
        raise InvalidRequest(f"the body has {len(payload)} bytes; at most {BODY_LIMIT_BYTES} are allowed")
    return parse_object(payload) if payload.strip() else {}


def _refusal(kind: type[BaseModel], error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0])[:80] if first["loc"] else ""
    known = ", ".join(kind.model_fields) or "none"
    if first["type"] == "extra_forbidden":
        return UnknownField(f"{field}: no such field; this verb takes {known}", param=field)
    return InvalidRequest(f"{field}: {first['msg']}", param=field or None)
