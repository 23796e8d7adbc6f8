"""The worker's own HTTP: a node works with no gateway. Plain calls out of the server's callback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from schemas.errors import (
    Cancelled,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    PunaError,
)
from schemas.node import Heartbeat
from schemas.openai import check_body
from schemas.request import DEADLINE_DEFAULT_S, RequestHead
from schemas.subjects import H_TRACEPARENT
from web import Exchange, Header
from web.headers import REQUEST_ID, identified, remedy_headers
from web.keys import Keyring
from worker.health import Health, page
from worker.httpreply import HttpReply
from worker.metrics import CONTENT_TYPE, Metrics
from worker.modelpages import ModelPages
from worker.peers.uploads import PREFIX as BLOBS
from worker.serving import Serving
from worker.work import Claim, Work

log = logging.getLogger(__name__)

CHAT: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"
_OPEN: Final = frozenset(("/healthz", "/livez", "/readyz", "/metrics"))


@dataclass(frozen=True, slots=True)
class House:
    """What the pages speak of."""

    serving: Serving
    beat: Callable[[], Heartbeat]
    metrics: Metrics
    keys: Keyring
    health: Health
    clock: Callable[[], float]
    fresh_id: Callable[[], str]
    models: ModelPages
    blobs: Callable[[Exchange, list[Header]], None]
    """Answers what is below `/v1/blobs/`, by tokens of its own."""


class Pages:
    """The HTTP server's handler."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._pages: dict[str, Callable[[Exchange, list[Header]], None]] = {
            MODELS: self._models,
            "/v1/node/inventory": self._inventory,
            "/healthz": self._health,
            "/livez": self._live,
            "/readyz": self._ready,
            "/metrics": self._metrics,
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or later."""
        path, headers = exchange.request.path, identified(exchange.request.headers)
        try:
            if path.startswith(BLOBS):
                self._house.blobs(exchange, headers)
                return
            if path not in _OPEN:
                self._house.keys.check(exchange.request.headers)
            if path == CHAT:
                self._chat(exchange, headers)
            else:
                self._page(exchange, headers)
        except PunaError as error:
            exchange.respond(error.http_status, error.body(), headers=[*headers, *remedy_headers(error)])

    def _page(self, exchange: Exchange, headers: list[Header]) -> None:
        path, method = exchange.request.path, exchange.request.method
        page = self._one_model if path.startswith(f"{MODELS}/") else self._pages.get(path)
        if page is None:
            raise NotFound(f"no page {path[:80]!r} here; this is a worker, the gateway has more")
        if method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{path} takes GET")
        page(exchange, headers)

    # -- requests ----------------------------------------------------------------------------------------------------
    def _chat(self, exchange: Exchange, headers: list[Header]) -> None:
        request, house = exchange.request, self._house
        if request.method != "POST":
            raise MethodNotAllowed(f"{CHAT} takes POST")
        found = check_body("chat", request.body)
        if not house.serving.serves(found.model):
            raise ModelNotFound(f"this node does not serve model {found.model}", param="model")
        own = self._own_id(headers[0][1], request.headers.get(REQUEST_ID))
        head = RequestHead(
            "chat", own, "", deadline_s=DEADLINE_DEFAULT_S, traceparent=request.headers.get(H_TRACEPARENT)
        )
        now = house.clock()
        work = Work(head, found.model, request.body, "http", now, Claim(None, now), found.stream)
        reply = HttpReply(
            exchange,
            stream=found.stream,
            headers=headers,
            clock=house.clock,
            on_left=lambda: house.serving.cancel(own, None, Cancelled("the client left")),
        )
        house.serving.take(work, reply)

    def _own_id(self, shown: str, given: str | None) -> str:
        """An id that nobody can use twice, for the one that the client sees, which may be its own."""
        return f"{self._house.fresh_id()}-{shown}"[:128] if shown == given else shown

    # -- pages -------------------------------------------------------------------------------------------------------
    def _models(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, 200, self._house.models.listing(), headers)

    def _one_model(self, exchange: Exchange, headers: list[Header]) -> None:
        model = exchange.request.path.removeprefix(f"{MODELS}/")
        _json(exchange, 200, self._house.models.one(model), headers)

    def _inventory(self, exchange: Exchange, headers: list[Header]) -> None:
        exchange.respond(200, self._house.beat().model_dump_json().encode(), headers=headers)

    def _health(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, *page(self._house.health.healthy(), "unhealthy"), headers)

    def _live(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, *page(self._house.health.live(), "dead"), headers)

    def _ready(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, *page(self._house.health.ready(), "unready"), headers)

    def _metrics(self, exchange: Exchange, headers: list[Header]) -> None:
        exchange.respond(200, self._house.metrics.text(), content_type=CONTENT_TYPE, headers=headers)


def _json(exchange: Exchange, status: int, body: dict[str, Any], headers: list[Header]) -> None:
    exchange.respond(status, orjson.dumps(body), headers=headers)
