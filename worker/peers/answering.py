"""Answers to other workers' questions after files: what this node has of one, and the leave to take it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from pydantic import ValidationError

from bus.connection import Bus, Message, Subscription
from schemas.errors import PunaError
from schemas.peer import KEY, Offer, Question
from worker.peers import chunks
from worker.peers.address import Address
from worker.peers.hands import Hands
from worker.peers.holdings import Held, Holdings
from worker.peers.tokens import Tokens

log = logging.getLogger(__name__)

AT_ONCE: Final = 32
"""Looks at the disk at the same time; on one that hangs, further questions are not answered."""
Run = Callable[[str, Coroutine[Any, Any, None]], object]


class Answering:
    """Hears from `start` to `stop`. `uploads` tells what is being sent now."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        holdings: Holdings,
        tokens: Tokens,
        address: Address,
        hands: Hands,
        *,
        run: Run,
        uploads: Callable[[], int],
    ) -> None:
        self._bus = bus
        self._node = node
        self._holdings = holdings
        self._tokens = tokens
        self._address = address
        self._hands = hands
        self._run = run
        self._uploads = uploads
        self._looking = 0
        self._heard: Subscription | None = None

    def start(self) -> None:
        """Hear questions."""
        self._heard = self._bus.subscribe(self._bus.names.peer_any(), self._asked)

    def stop(self) -> None:
        """Hear none any more. Safe to call twice."""
        if self._heard is not None:
            self._heard.close()
            self._heard = None

    def _asked(self, message: Message) -> None:
        key = message.subject.rpartition(".")[2]
        if not message.reply or not KEY.fullmatch(key) or self._looking >= AT_ONCE:
            return
        try:
            asked = Question.model_validate_json(message.payload)
        except ValidationError:
            return
        url = self._address.url_for(asked.host)
        if asked.node != self._node and url is not None:
            self._looking += 1
            self._run(f"answer {key[:16]}", self._answer(key, asked, url, message.reply))

    async def _answer(self, key: str, asked: Question, url: str, reply: str) -> None:
        try:
            held = await self._hands.do(lambda: self._holdings.look(key))
            if held is not None and held.have & ~chunks.from_ranges(asked.have, chunks.count_of(held.size_bytes)):
                self._bus.publish(reply, self._offer(key, url, held).model_dump_json().encode())
        except PunaError as error:  # whoever asked asks again
            log.info("peer_unanswered", extra={"event": "peer_unanswered", "reason": error.code})
        finally:
            self._looking -= 1

    def _offer(self, key: str, url: str, held: Held) -> Offer:
        return Offer(
            node=self._node,
            url=url,
            token=self._tokens.grant(key),
            size_bytes=held.size_bytes,
            complete=held.complete,
            sha256=held.sha256,
            have=() if held.complete else tuple(chunks.to_ranges(held.have)),
            uploads=self._uploads(),
        )
