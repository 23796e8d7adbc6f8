"""What operators and gateways may ask of this node by name: `puna.node.<node>.<verb>`, a NATS micro service.

Every verb answers at once: what takes longer is begun, and `status` tells how it goes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from bus.connection import Bus, Message
from bus.micro import Service
from bus.watched import Tasks
from schemas.errors import InvalidRequest, ModelNotFound, PunaError, Unavailable
from schemas.node import EngineState, Heartbeat
from schemas.reply import Cancel
from schemas.subjects import WORKER_SERVICE
from worker.enginelog import EngineLog
from worker.orders import LogsOrder, Order, RestartOrder, read_cancel, read_order
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

ANSWER_SHARE: Final = 2
"""An answer may fill one part in so many of `max_payload`; older log lines are left out for that."""
_VERSION: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)")

Verb = Callable[[bytes], bytes]


class ControlledEngine(Protocol):
    """What control needs of an engine."""

    engine_id: str
    log: EngineLog

    @property
    def state(self) -> EngineState:
        """Where it is."""
        ...

    async def restart(self) -> None:
        """Stop and start. Raises `PunaError`."""
        ...


class Running(Protocol):
    """What control needs of the requests that run here."""

    @property
    def active(self) -> int:
        """How many."""
        ...

    def cancel(self, request_id: str, epoch: int | None) -> bool:
        """End one. False if it is not here."""
        ...


@dataclass(frozen=True, slots=True)
class Reach:
    """What the verbs speak of. `leave` makes the node drain and end, as SIGTERM does."""

    settings: WorkerSettings
    engines: Mapping[str, ControlledEngine]
    requests: Running
    beat: Callable[[], Heartbeat]
    tasks: Tasks
    leave: Callable[[], None]


class Control:
    """Answers the verbs of one node."""

    def __init__(self, bus: Bus, version: str, reach: Reach) -> None:
        self._bus = bus
        self._reach = reach
        self._node = node = reach.settings.node
        self._restarting: set[str] = set()
        self._leaving = False
        self._service = Service(
            bus,
            name=WORKER_SERVICE,
            version=semantic(version),
            description="Control of one node",
            metadata={"node": node},
        )
        for verb, answer in self._verbs().items():
            self._service.endpoint(verb, bus.names.node(node, verb), _on(answer), queue=None)

    def _verbs(self) -> dict[str, Verb]:
        return {
            "ping": self._ping,
            "status": self._status,
            "inventory": self._inventory,
            "config": self._config,
            "logs": self._logs,
            "cancel": self._cancel,
            "restart": self._restart,
            "drain": self._drain,
        }

    async def start(self) -> None:
        """Listen."""
        await self._service.start()

    async def stop(self) -> None:
        """Listen no more. Safe to call twice."""
        await self._service.stop()

    # -- telling
    def _ping(self, payload: bytes) -> bytes:
        read_order(Order, payload)
        beat = self._reach.beat()
        return orjson.dumps({"node": beat.node, "version": beat.version, "boot_id": beat.boot_id})

    def _status(self, payload: bytes) -> bytes:
        read_order(Order, payload)
        beat = self._reach.beat()
        return orjson.dumps(beat.model_dump(mode="json", include={"node", "engines", "pressure", "draining"}))

    def _inventory(self, payload: bytes) -> bytes:
        read_order(Order, payload)
        return self._reach.beat().model_dump_json().encode()

    def _config(self, payload: bytes) -> bytes:
        read_order(Order, payload)
        return orjson.dumps({"node": self._node, "config": self._reach.settings.shown()})

    def _logs(self, payload: bytes) -> bytes:
        order = read_order(LogsOrder, payload)
        model = order.model if order.model is not None else self._only_model()
        engine = self._engine(model)
        lines = engine.log.tail(order.lines)
        shown = last_within(lines, self._bus.max_payload // ANSWER_SHARE)
        told = {"node": self._node, "model": model, "engine": engine.engine_id}
        return orjson.dumps(
            told | {"lines": shown, "left_out": len(lines) - len(shown), "withheld_total": engine.log.withheld}
        )

    # -- doing
    def _cancel(self, payload: bytes) -> bytes:
        order: Cancel = read_cancel(payload)
        done = self._reach.requests.cancel(order.request, order.epoch)
        return orjson.dumps({"request": order.request, "cancelled": done})

    def _restart(self, payload: bytes) -> bytes:
        model = read_order(RestartOrder, payload).model
        engine = self._engine(model)
        if self._leaving or self._reach.beat().draining:
            raise Unavailable(f"node {self._node} is draining")
        begun = model not in self._restarting
        if begun:
            self._restarting.add(model)
            self._reach.tasks.start(f"restart {engine.engine_id}", self._restarted(model, engine))
        told = {"node": self._node, "model": model, "engine": engine.engine_id}
        return orjson.dumps(told | {"restarting": True, "begun": begun})

    async def _restarted(self, model: str, engine: ControlledEngine) -> None:
        facts = {"event": "engine_restarted", "engine": engine.engine_id, "model": model}
        try:
            await engine.restart()
            log.info("engine_restarted", extra=facts)
        except PunaError as error:
            log.warning("engine_restarted", extra=facts | {"reason": error.message})
        finally:
            self._restarting.discard(model)

    def _drain(self, payload: bytes) -> bytes:
        read_order(Order, payload)
        self._leaving = True
        asyncio.get_running_loop().call_soon(self._reach.leave)  # after the answer is on its way
        return orjson.dumps({"node": self._node, "draining": True, "active": self._reach.requests.active})

    # -- whom
    def _engine(self, model: str) -> ControlledEngine:
        engine = self._reach.engines.get(model)
        if engine is None:
            here = ", ".join(self._reach.engines) or "none"
            raise ModelNotFound(f"node {self._node} has no engine of {model[:80]!r}; it has {here}", param="model")
        return engine

    def _only_model(self) -> str:
        models = list(self._reach.engines)
        if len(models) != 1:
            raise InvalidRequest(f"name the model, one of: {', '.join(models) or 'none'}", param="model")
        return models[0]


def last_within(lines: list[str], limit_bytes: int) -> list[str]:
    """As many of the last lines as fit as JSON."""
    used, first = 0, len(lines)
    while first > 0 and (used := used + len(orjson.dumps(lines[first - 1])) + 1) <= limit_bytes:
        first -= 1
    return lines[first:]


def semantic(version: str) -> str:
    """A version of a Python package as micro services must write it: `0.1.0.dev3` → `0.1.0+dev3`."""
    hit = _VERSION.fullmatch(version)
    if hit is None:
        return "0.0.0"
    rest = ".".join(part for part in re.split(r"[^0-9A-Za-z-]+", hit[4]) if part)
    return f"{int(hit[1])}.{int(hit[2])}.{int(hit[3] or 0)}" + (f"+{rest}" if rest else "")


def _on(answer: Verb) -> Callable[[Message], bytes]:
    def handler(message: Message) -> bytes:
        return answer(message.payload)

    return handler
