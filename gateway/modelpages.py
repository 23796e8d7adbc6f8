"""The pages of llama.cpp's router mode, fleet-wide: load and unload a model, and what one of its engines says.

A load is answered once a node has taken it, which is at once; how it goes is told by `GET /models` and `/models/sse`.
The cheapest node is asked first, and the next one if that refuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bus.connection import Bus
from gateway import routermode
from gateway.candidates import Held, asked_by_bus, candidates, holders, running
from gateway.fleet import Fleet
from gateway.orders import order, order_raw
from schemas.errors import InvalidRequest, ModelNotFound, PunaError, Unavailable, UnknownField
from schemas.node import Heartbeat
from schemas.openai import parse_object

log = logging.getLogger(__name__)

TRIES: Final = 5
"""Nodes that are asked for one load, one after the other."""
_PASSED_ON: Final = frozenset(("/props", "/slots"))

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """Base of the bodies: a field that is not known is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadBody(Body):
    """llama.cpp's body, and where to load it."""

    model: str = Field(min_length=1, max_length=600)
    node: str | None = None
    devices: list[str] | None = None


class UnloadBody(Body):
    """llama.cpp's body, and which of its engines alone."""

    model: str = Field(min_length=1, max_length=600)
    node: str | None = None
    engine: str | None = None


def read_body(kind: type[B], raw: bytes) -> B:
    """A body of JSON. Raises `InvalidRequest` and its kinds, which name the field."""
    try:
        return kind.model_validate(parse_object(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:80]
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise UnknownField(f"{field}: no such field; this page takes {known}", param=field) from error
        raise InvalidRequest(f"{field}: {first['msg']}", param=field or None) from error


class ModelPages:
    """Answers the pages. Owns nothing but the way to the nodes."""

    def __init__(self, bus: Bus, fleet: Callable[[], Fleet]) -> None:
        self._bus = bus
        self._fleet = fleet

    def listing(self) -> dict[str, Any]:
        """`GET /models`."""
        return routermode.listing(routermode.known_models(self._fleet()))

    async def load(self, raw: bytes) -> dict[str, Any]:
        """`POST /models/load`. Raises `PunaError`: the reason of every node that refused."""
        body = read_body(LoadBody, raw)
        beats = self._beats()
        here = [held for held in running(beats, body.model) if body.node in (None, held.node)]
        if here and not body.devices:
            raise InvalidRequest(f"model is already running, on {_places(here)}", param="model")
        asked = {"model": body.model} | ({"devices": body.devices} if body.devices else {})
        refusals: list[tuple[str, PunaError]] = []
        for node in candidates(beats, body.model, body.node)[:TRIES]:
            try:
                answer = await order(self._bus, node, "load", asked)
            except PunaError as error:
                refusals.append((node, error))
                continue
            log.info("model_load", extra={"event": "model_load", "model": body.model, "node": node})
            return {"success": True, "puna": answer}
        raise _joined(f"model {body.model[:200]!r} could not be loaded", refusals)

    async def unload(self, raw: bytes) -> dict[str, Any]:
        """`POST /models/unload`. Raises `PunaError` if any node refused; the message says which have done it."""
        body = read_body(UnloadBody, raw)
        beats = self._beats()
        held = holders(beats, model=body.model, engine=body.engine)
        held = [one for one in held if one.state != "stopped" and body.node in (None, one.node)]
        if not held:
            raise self._not_running(body.model, beats)
        by_engine = body.engine is not None
        targets = [(one.node, {"engine": one.engine}) for one in held] if by_engine else []
        targets = targets or [(node, {"model": body.model}) for node in sorted({one.node for one in held})]
        results = await asyncio.gather(
            *(order(self._bus, node, "unload", asked) for node, asked in targets), return_exceptions=True
        )
        return _unloaded(body.model, [node for node, _ in targets], results)

    def _not_running(self, model: str, beats: list[Heartbeat]) -> PunaError:
        if model in routermode.known_models(self._fleet()) or holders(beats, model=model):
            return InvalidRequest("model is not running", param="model")
        return ModelNotFound(f"model {model[:200]!r} is not found; GET /models lists what there is", param="model")

    async def engine_page(self, path: str, query: Mapping[str, str]) -> bytes:
        """`GET /props?model=` and `GET /slots?model=`: the page of an engine that serves the model."""
        model = query.get("model", "")
        if not model and path == "/props":
            return orjson.dumps(_own_props())
        if not model or path not in _PASSED_ON:
            raise InvalidRequest("name the model: ?model=ID", param="model")
        beats = self._beats()
        ready = [held for held in holders(beats, model=model) if held.state == "ready"]
        if not ready:
            if model not in routermode.known_models(self._fleet()):
                raise ModelNotFound(f"model {model[:200]!r} is not found", param="model")
            raise InvalidRequest("model is not loaded", param="model")
        asked = {"engine": ready[0].engine, "path": path}
        return await order_raw(self._bus, ready[0].node, "engine-get", asked)

    def _beats(self) -> list[Heartbeat]:
        fleet = self._fleet()
        if not fleet.whole:
            raise Unavailable("the fleet is not known yet; try again in a moment", retry_after_s=1)
        return [one.beat for one in fleet.nodes.values() if asked_by_bus(one.beat)]


def _own_props() -> dict[str, Any]:
    """What llama-server's router says of itself where no model is named."""
    return {
        "role": "router",
        "max_instances": 0,
        "models_autoload": True,
        "model_alias": "puna",
        "model_path": "none",
        "default_generation_settings": {"params": {}, "n_ctx": 0},
    }


def _places(held: list[Held]) -> str:
    return ", ".join(sorted({one.node for one in held}))


def _unloaded(model: str, nodes: list[str], results: list[Any]) -> dict[str, Any]:
    done = [node for node, result in zip(nodes, results, strict=True) if not isinstance(result, BaseException)]
    failed: list[tuple[str, PunaError]] = []
    for node, result in zip(nodes, results, strict=True):
        if isinstance(result, PunaError):
            failed.append((node, result))
        elif isinstance(result, BaseException):
            raise result
    log.info("model_unload", extra={"event": "model_unload", "model": model, "nodes": done})
    if failed:
        told = f" (unloaded on {', '.join(done)})" if done else ""
        raise _joined(f"model {model[:200]!r} is not unloaded everywhere{told}", failed)
    return {"success": True, "puna": {"engines": list(results)}}


def _joined(what: str, refusals: list[tuple[str, PunaError]]) -> PunaError:
    """One error of several: of one node its own, else a 503 with each reason."""
    told = "; ".join(f"{node}: {error.message}" for node, error in refusals)
    if len(refusals) == 1:
        error = refusals[0][1]
        return type(error)(f"{what}: {told}", param=error.param, retry_after_s=error.retry_after_s)
    return Unavailable(f"{what}: {told}", retry_after_s=10)
