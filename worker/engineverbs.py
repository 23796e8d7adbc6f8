"""The verbs that speak of engines: `load`, `unload`, `restart`, `logs`, `explain`, `engine-get`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import orjson

from bus.connection import Bus, Message
from bus.endpoint import Handler
from bus.watched import Tasks
from schemas.errors import EngineFailed, InvalidRequest, ModelNotFound, NotFound, PunaError, Unavailable
from schemas.node import Heartbeat
from worker.engine import Engine
from worker.following import Following
from worker.keeper import Keeper
from worker.orders import (
    EngineOrder,
    ExplainOrder,
    LoadOrder,
    LogsOrder,
    PageOrder,
    RestartOrder,
    UnloadOrder,
    read_order,
)

log = logging.getLogger(__name__)

ANSWER_SHARE: Final = 2
"""An answer may fill one part in so many of `max_payload`; older log lines are left out for that."""
PAGE_LIMIT_S: Final = 5.0
HTTP_OK: Final = 200
OPERATOR: Final = "an operator asked"


class EngineVerbs:
    """Orders about engines. What takes long is begun, and the heartbeat tells how it goes."""

    def __init__(self, bus: Bus, node: str, keeper: Keeper, beat: Callable[[], Heartbeat], tasks: Tasks) -> None:
        self._bus = bus
        self._node = node
        self._keeper = keeper
        self._beat = beat
        self._tasks = tasks
        self._restarting: set[str] = set()
        self._following = Following(bus, tasks, limit_bytes=lambda: bus.max_payload // ANSWER_SHARE)

    def verbs(self) -> dict[str, Handler]:
        """By name."""
        return {
            "load": self._load,
            "unload": self._unload,
            "restart": self._restart,
            "logs": self._logs,
            "explain": self._explain,
            "engine-get": self._engine_get,
        }

    # -- doing
    def _load(self, message: Message) -> bytes:
        order = read_order(LoadOrder, message.payload)
        self._refuse_while_draining()
        engine = self._keeper.by_hand.load_now(order.model, order.devices)
        told: dict[str, object] = {"node": self._node, "model": order.model, "loading": True}
        if engine is None:
            self._tasks.start(f"load {order.model[:80]}", self._loaded(order))
            return orjson.dumps(
                told | {"engine": None, "reason": self._keeper.by_hand.reason(order.model, order.devices)}
            )
        return orjson.dumps(told | {"engine": engine.engine_id, "devices": engine.spec.devices, "state": engine.state})

    async def _loaded(self, order: LoadOrder) -> None:
        """Its place is not free yet. The wish stands until it is, or until it never will be."""
        await self._settled("load", order.model, self._keeper.load(order.model, order.devices))

    def _unload(self, message: Message) -> bytes:
        order = read_order(UnloadOrder, message.payload)
        if (order.model is None) == (order.engine is None):
            raise InvalidRequest("name a model, or an engine by its id", param="model")
        if order.model is not None and not self._keeper.of(order.model):
            raise self._no_engine(order.model, "model")
        if order.engine is not None:
            self._by_id(order.engine)
        gone = self._keeper.by_hand.put_down(model=order.model, engine=order.engine, reason=OPERATOR)
        return orjson.dumps({"node": self._node, "model": order.model, "engines": gone, "unloading": True})

    def _restart(self, message: Message) -> bytes:
        order = read_order(RestartOrder, message.payload)
        if order.model is None and order.engine is None:
            raise InvalidRequest("name a model, or an engine by its id", param="model")
        engine = self._engine(order)
        self._refuse_while_draining()
        begun = engine.engine_id not in self._restarting
        if begun:
            self._restarting.add(engine.engine_id)
            self._tasks.start(f"restart {engine.engine_id}", self._restarted(engine))
        told = {"node": self._node, "model": engine.spec.model, "engine": engine.engine_id}
        return orjson.dumps(told | {"restarting": True, "begun": begun})

    async def _restarted(self, engine: Engine) -> None:
        try:
            await self._settled("restart", engine.spec.model, engine.restart(), engine.engine_id)
        finally:
            self._restarting.discard(engine.engine_id)

    async def _settled(self, verb: str, model: str, work: Awaitable[object], engine: str | None = None) -> None:
        event = f"engine_{verb}ed"
        facts = {"event": event, "engine": engine, "model": model}
        try:
            await work
            log.info(event, extra=facts)
        except PunaError as error:
            log.warning(event, extra=facts | {"reason": error.message})

    def _refuse_while_draining(self) -> None:
        if self._beat().draining:
            raise Unavailable(f"node {self._node} is draining")

    # -- telling
    def _logs(self, message: Message) -> bytes:
        order = read_order(LogsOrder, message.payload)
        engine = self._engine(order)
        lines = engine.log.tail(order.lines)
        shown = last_within(lines, self._bus.max_payload // ANSWER_SHARE)
        if order.follow:
            self._follow(message.reply, engine)
        told = {"node": self._node, "model": engine.spec.model, "engine": engine.engine_id}
        return orjson.dumps(
            told | {"lines": shown, "left_out": len(lines) - len(shown), "withheld_total": engine.log.withheld}
        )

    def _follow(self, subject: str, engine: Engine) -> None:
        if not subject:
            raise InvalidRequest("a log can be followed only with a reply subject", param="follow")
        engine_id = engine.engine_id
        self._following.begin(subject, engine.log, lambda: self._keeper.engines.get(engine_id) is engine)

    def _explain(self, message: Message) -> bytes:
        order = read_order(ExplainOrder, message.payload)
        if not self._keeper.serves(order.model):
            raise ModelNotFound(f"{order.model[:80]!r} is not one of node {self._node}'s models", param="model")
        offer, text = self._keeper.survey.explain(order.model)
        beat = self._beat()
        engines = [each.model_dump(mode="json") for each in beat.engines]
        told: dict[str, object] = {"node": self._node, "model": order.model, "text": text}
        return orjson.dumps(told | {"offers": [offer.model_dump(mode="json")], "engines": engines})

    async def _engine_get(self, message: Message) -> bytes:
        """A page of an engine that is ready, as it is."""
        order = read_order(PageOrder, message.payload)
        client = self._by_id(order.engine).client
        if client is None:
            raise Unavailable(f"{order.engine} is not ready", retry_after_s=1.0)
        answer = await client.fetch("GET", order.path, timeout_s=PAGE_LIMIT_S)
        if answer.status != HTTP_OK:
            raise EngineFailed(f"{order.engine} answered {answer.status} to {order.path}")
        return answer.body

    # -- whom
    def _engine(self, order: EngineOrder) -> Engine:
        """The one that an order means: by its id, by its model, or the only one."""
        if order.engine is not None:
            return self._by_id(order.engine)
        engines = self._keeper.of(order.model) if order.model is not None else list(self._keeper.engines.values())
        if len(engines) == 1:
            return engines[0]
        if order.model is not None and not engines:
            raise self._no_engine(order.model, "model")
        if order.model is not None:
            raise InvalidRequest(f"{order.model} has {_names(engines)}: name one by its id", param="engine")
        raise InvalidRequest(f"name the model, one of: {_models(engines) or 'none'}", param="model")

    def _by_id(self, engine_id: str) -> Engine:
        engine = self._keeper.engines.get(engine_id)
        if engine is None:
            raise self._no_engine(engine_id, "engine")
        return engine

    def _no_engine(self, what: str, field: str) -> PunaError:
        here = list(self._keeper.engines.values())
        told = (_models(here) if field == "model" else _names(here)) or "none"
        text = f"node {self._node} has no engine {'of ' if field == 'model' else ''}{what[:80]!r}; it has {told}"
        return ModelNotFound(text, param=field) if field == "model" else NotFound(text, param=field)


def last_within(lines: list[str], limit_bytes: int) -> list[str]:
    """As many of the last lines as fit as JSON."""
    used, first = 0, len(lines)
    while first > 0 and (used := used + len(orjson.dumps(lines[first - 1])) + 1) <= limit_bytes:
        first -= 1
    return lines[first:]


def _names(engines: Sequence[Engine]) -> str:
    return ", ".join(each.engine_id for each in engines)


def _models(engines: Sequence[Engine]) -> str:
    return ", ".join(dict.fromkeys(each.spec.model for each in engines))
