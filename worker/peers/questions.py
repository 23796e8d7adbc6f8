"""Asking all workers at once who has a file. Answers come as they come."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from pydantic import ValidationError

from bus.connection import Bus, Message, Subscription
from schemas.errors import PunaError
from schemas.peer import Offer, Question
from worker.peers import chunks

log = logging.getLogger(__name__)

RUNS_TOLD = 64
Heard = Callable[[Offer], None]


class Questions:
    """One subscription for all answers to this node."""

    def __init__(self, bus: Bus, node: str, host: str) -> None:
        self._bus = bus
        self._node = node
        self._host = host
        self._inbox = f"{bus.settings.inbox_prefix}.{secrets.token_hex(8)}"
        self._last = 0
        self._heard: dict[str, Heard] = {}
        self._answers: Subscription | None = None

    def join(self, heard: Heard) -> str:
        """Answers to the mark that this returns are handed to `heard`, until `leave`."""
        if self._answers is None:
            self._answers = self._bus.subscribe(f"{self._inbox}.*", self._answered)
        self._last += 1
        self._heard[str(self._last)] = heard
        return str(self._last)

    def leave(self, mark: str) -> None:
        """Hear no answers any more."""
        self._heard.pop(mark, None)

    def ask(self, mark: str, key: str, have: int) -> bool:
        """Who has other chunks than these? False if it cannot be asked now."""
        asked = Question(node=self._node, host=self._host, have=tuple(chunks.to_ranges(have)[:RUNS_TOLD]))
        try:
            subject, payload = self._bus.names.peer(key), asked.model_dump_json().encode()
            self._bus.publish(subject, payload, reply=f"{self._inbox}.{mark}")
        except PunaError as error:
            log.info("peers_unasked", extra={"event": "peers_unasked", "reason": error.code})
            return False
        return True

    def _answered(self, message: Message) -> None:
        heard = self._heard.get(message.subject.rpartition(".")[2])
        if heard is None:
            return
        try:
            offer = Offer.model_validate_json(message.payload)
        except ValidationError as error:
            log.warning(
                "peer_offer_unreadable", extra={"event": "peer_offer_unreadable", "faults": error.error_count()}
            )
            return
        if offer.node != self._node:
            heard(offer)
