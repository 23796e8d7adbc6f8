"""What operators and gateways may ask of this node by name: `puna.node.<node>.<verb>`, a NATS micro service.

Every verb answers at once: what takes longer is begun, and `status` tells how it goes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import orjson

from bus.connection import Bus, Message
from bus.endpoint import Handler
from bus.micro import Service
from bus.watched import Tasks
from schemas.errors import DeadlineExceeded
from schemas.node import Heartbeat
from schemas.reply import Cancel
from schemas.subjects import WORKER_SERVICE
from worker.engineverbs import EngineVerbs
from worker.keeper import Keeper
from worker.orders import Order, read_cancel, read_order
from worker.settings import WorkerSettings

_VERSION: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)")

Verb = Callable[[bytes], bytes]


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
    keeper: Keeper
    requests: Running
    beat: Callable[[], Heartbeat]
    tasks: Tasks
    leave: Callable[[], None]
    verbs: Mapping[str, Handler] = field(default_factory=dict[str, Handler])
    """Further ones."""
    ordered: Callable[[str, float, Exception | None], None] = lambda verb, seconds, error: None
    """Hears of each verb that was answered, how long that took, and of the error if it was refused."""


class Control:
    """Answers the verbs of one node."""

    def __init__(self, bus: Bus, version: str, reach: Reach) -> None:
        self._bus = bus
        self._reach = reach
        self._node = node = reach.settings.node
        engines = EngineVerbs(bus, node, reach.keeper, reach.beat, reach.tasks)
        self._service = Service(
            bus,
            name=WORKER_SERVICE,
            version=semantic(version),
            description="Control of one node",
            metadata={"node": node},
        )
        own: dict[str, Handler] = {verb: _on(answer) for verb, answer in self._verbs().items()}
        for verb, handler in (own | engines.verbs() | dict(reach.verbs)).items():
            self._service.endpoint(verb, bus.names.node(node, verb), self._counted(verb, handler), queue=None)

    def _verbs(self) -> dict[str, Verb]:
        return {
            "ping": self._ping,
            "status": self._status,
            "inventory": self._inventory,
            "config": self._config,
            "cancel": self._cancel,
            "drain": self._drain,
        }

    def _counted(self, verb: str, handler: Handler) -> Handler:
        def counted(message: Message) -> Awaitable[bytes] | bytes:
            began = time.perf_counter()
            try:
                answer = handler(message)
            except Exception as error:
                self._reach.ordered(verb, time.perf_counter() - began, error)
                raise
            if isinstance(answer, Awaitable):
                return self._awaited(verb, began, answer)
            self._reach.ordered(verb, time.perf_counter() - began, None)
            return answer

        return counted

    async def _awaited(self, verb: str, began: float, answer: Awaitable[bytes]) -> bytes:
        failure: Exception | None = None
        try:
            return await answer
        except asyncio.CancelledError:
            failure = DeadlineExceeded(f"{verb} did not end in time")
            raise
        except Exception as error:
            failure = error
            raise
        finally:
            self._reach.ordered(verb, time.perf_counter() - began, failure)

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

    # -- doing
    def _cancel(self, payload: bytes) -> bytes:
        order: Cancel = read_cancel(payload)
        done = self._reach.requests.cancel(order.request, order.epoch)
        return orjson.dumps({"request": order.request, "cancelled": done})

    def _drain(self, payload: bytes) -> bytes:
        read_order(Order, payload)
        asyncio.get_running_loop().call_soon(self._reach.leave)  # after the answer is on its way
        return orjson.dumps({"node": self._node, "draining": True, "active": self._reach.requests.active})


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
