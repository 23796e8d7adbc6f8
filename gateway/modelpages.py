"""The pages of llama.cpp's router mode, fleet-wide: fetch, load, unload and delete a model, and what one of its
engines says.

A load is answered once a node has taken it, which is at once, a download or delete once its task is stored; how it goes
is told by `GET /models` and `/models/sse`. For a load the cheapest node is asked first, and the next one if that
refuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bus.connection import Bus
from gateway import routermode
from gateway.candidates import Held, asked_by_bus, candidates, holders, running
from gateway.orders import order, order_raw
from gateway.tasks import send_task
from gateway.upstream import upstream_page
from gateway.view import View
from schemas.errors import InvalidRequest, ModelNotFound, NotAllowed, PunaError, Unavailable, UnknownField
from schemas.node import Heartbeat
from schemas.openai import parse_object
from schemas.source import parse_source

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


class FetchBody(Body):
    """llama.cpp's body, and where it is to come from, if that is not the Hub under the model's own name."""

    model: str = Field(min_length=1, max_length=600)
    source: str | None = None
    node: str | None = None


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

    def __init__(self, bus: Bus, view: View, fetch_schemes: Collection[str] = ("hf",)) -> None:
        self._bus = bus
        self._view = view
        self._fetch_schemes = fetch_schemes

    def listing(self) -> dict[str, Any]:
        """`GET /models`."""
        return routermode.listing(self._known())

    async def fetch(self, raw: bytes) -> dict[str, Any]:
        """`POST /models`: a download task. Raises `InvalidRequest`, which names the field."""
        body = read_body(FetchBody, raw)
        model = body.model.removeprefix("hf://")
        source = body.source or f"hf://{model}"
        self._may_fetch(parse_source(source).scheme)
        known = self._known().get(model)
        if known is not None and not known.removable:
            raise InvalidRequest(f"model {model[:200]!r} is one of a node's own settings", param="model")
        task = await send_task(self._bus, "download", {"model": model, "source": source}, node=body.node)
        log.info("model_fetch", extra={"event": "model_fetch", "model": model, "task": task})
        return {"success": True, "puna": {"task": task, "model": model}}

    def _may_fetch(self, scheme: str | None) -> None:
        if not self._fetch_schemes:
            raise NotAllowed("this gateway does not let clients fetch or delete models; see fetch_schemes")
        if scheme is not None and scheme not in self._fetch_schemes:
            allowed = ", ".join(f"{each}://" for each in sorted(self._fetch_schemes))
            text = f"this gateway lets clients fetch from {allowed} only; see fetch_schemes, or use `puna pull`"
            raise NotAllowed(text, param="source")

    async def delete(self, model: str) -> dict[str, Any]:
        """`DELETE /models?model=`: from every disk. Raises `ModelNotFound`, `InvalidRequest`."""
        self._may_fetch(None)
        if not model:
            raise InvalidRequest("name the model: ?model=ID", param="model")
        known = self._known().get(model)
        if known is None:
            raise ModelNotFound(f"model {model[:200]!r} is not found; GET /models lists what there is", param="model")
        if not known.removable:
            where = ", ".join(sorted({*known.nodes, *known.on_disk})[:3])
            text = (
                f"model {model[:200]!r} is in the settings of {where}, or served in place, and is not Puna's to delete"
            )
            raise InvalidRequest(text, param="model")
        task = await send_task(self._bus, "delete", {"model": model})
        log.info("model_delete", extra={"event": "model_delete", "model": model, "task": task})
        return {"success": True, "puna": {"task": task}}

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
            return await self._stop_fetching(body, beats)
        by_engine = body.engine is not None
        targets = [(one.node, {"engine": one.engine}) for one in held] if by_engine else []
        targets = targets or [(node, {"model": body.model}) for node in sorted({one.node for one in held})]
        results = await asyncio.gather(
            *(order(self._bus, node, "unload", asked) for node, asked in targets), return_exceptions=True
        )
        return _unloaded(body.model, [node for node, _ in targets], results)

    async def _stop_fetching(self, body: UnloadBody, beats: list[Heartbeat]) -> dict[str, Any]:
        """llama.cpp ends a download by the order to unload. What has come of it is deleted."""
        known = self._known().get(body.model)
        if known is None or known.status.value != "downloading" or body.engine is not None:
            raise self._not_running(body.model, beats)
        self._may_fetch(None)
        task = await send_task(self._bus, "delete", {"model": body.model}, node=body.node)
        return {"success": True, "puna": {"task": task}}

    def _known(self) -> dict[str, routermode.Known]:
        return routermode.known_models(self._view())

    def _not_running(self, model: str, beats: list[Heartbeat]) -> PunaError:
        if model in self._known() or holders(beats, model=model):
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
            if model not in self._known():
                raise ModelNotFound(f"model {model[:200]!r} is not found", param="model")
            raise InvalidRequest("model is not loaded", param="model")
        asked = {"engine": ready[0].engine, "path": path}
        return await order_raw(self._bus, ready[0].node, "engine-get", asked)

    async def upstream(self, path: str) -> bytes:
        """A page of one engine, as it is. Raises as `upstream_page` does."""
        return await upstream_page(self._bus, {beat.node for beat in self._beats()}, path)

    def _beats(self) -> list[Heartbeat]:
        fleet = self._view().fleet
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
