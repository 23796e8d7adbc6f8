"""What operators and gateways may ask of this node by name: `puna.node.<node>.<verb>`. Every question has an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import orjson
from pydantic import ValidationError

from bus.connection import Bus, Message, Subscription
from schemas.errors import BusUnavailable, InvalidRequest, PunaError
from schemas.node import Heartbeat
from schemas.reply import Cancel
from worker.native import error_headers
from worker.serving import Serving

log = logging.getLogger(__name__)

Answer = Callable[[bytes], bytes]
REQUEST_LIMIT_BYTES: Final = 4096


class Control:
    """Answers the verbs of one node. `beat` gives its present heartbeat."""

    def __init__(self, bus: Bus, node: str, serving: Serving, beat: Callable[[], Heartbeat]) -> None:
        self._bus = bus
        self._node = node
        self._serving = serving
        self._beat = beat
        self._subscriptions: list[Subscription] = []
        self._verbs: dict[str, Answer] = {
            "ping": self._ping,
            "status": self._status,
            "inventory": self._inventory,
            "cancel": self._cancel,
        }

    def start(self) -> None:
        """Listen."""
        for verb, answer in self._verbs.items():
            self._subscriptions.append(self._bus.subscribe(self._bus.names.node(self._node, verb), self._on(answer)))

    def stop(self) -> None:
        """Listen no more. Safe to call twice."""
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()

    def _on(self, answer: Answer) -> Callable[[Message], None]:
        def handler(message: Message) -> None:
            try:
                payload, headers = answer(message.payload), None
            except PunaError as error:
                payload, headers = error.body(), error_headers(error.message, error.http_status)
            if message.reply:
                self._say(message.reply, payload, headers)

        return handler

    def _say(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> None:
        try:
            self._bus.publish(subject, payload, headers=headers)
        except BusUnavailable as error:
            log.info("answer_unsent", extra={"event": "answer_unsent", "reason": error.code})

    def _ping(self, _: bytes) -> bytes:
        beat = self._beat()
        return orjson.dumps({"node": beat.node, "version": beat.version, "boot_id": beat.boot_id})

    def _status(self, _: bytes) -> bytes:
        beat = self._beat()
        return orjson.dumps(beat.model_dump(mode="json", include={"node", "engines", "pressure", "draining"}))

    def _inventory(self, _: bytes) -> bytes:
        return self._beat().model_dump_json().encode()

    def _cancel(self, payload: bytes) -> bytes:
        order = read_cancel(payload)
        done = self._serving.cancel(order.request, order.epoch)
        return orjson.dumps({"request": order.request, "cancelled": done})


def read_cancel(payload: bytes) -> Cancel:
    """A request id as it is, or `{"request": id}`. Raises `InvalidRequest`."""
    text = payload[:REQUEST_LIMIT_BYTES].strip()
    try:
        return Cancel.model_validate_json(text) if text.startswith(b"{") else Cancel(request=text.decode())
    except (ValidationError, UnicodeDecodeError) as error:
        raise InvalidRequest('send the request id, or {"request": ID}', param="request") from error
