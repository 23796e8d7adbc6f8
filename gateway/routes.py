"""Which page answers which path. Plain calls out of the HTTP server's callback; pages that ask NATS get a task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import orjson

from bus.watched import Tasks
from gateway import discovery, health, metrics, models, nodes
from gateway.admission import Ticket, admit
from gateway.agents import Agents
from gateway.cors import Cors
from gateway.fleet import Fleet
from gateway.inference import Inference
from gateway.metrics import Metrics
from gateway.modelevents import ModelEvents
from gateway.modelpages import ModelPages
from gateway.nodes import Queue
from gateway.upstream import UPSTREAM
from gateway.view import View
from schemas.errors import MethodNotAllowed, ModelLoading, ModelNotFound, NotFound, PunaError
from schemas.request import OPS
from web import Exchange, Header, Request
from web.headers import identified, remedy_headers
from web.keys import Keyring

log = logging.getLogger(__name__)

PROBES: Final = frozenset(("/health", "/healthz", "/livez", "/readyz"))
POSTS: Final[dict[str, str]] = {path: op for op, path in OPS.items() if op != "transcriptions"} | {
    "/chat/completions": "chat",
    "/rerank": "rerank",
}
"""Path → operation. The two without `/v1` are llama-server's own and mean the same there."""
_MODEL: Final = "/v1/models/"
_NODE: Final = "/v1/nodes/"
JSON: Final = "application/json"
_PATH_SHOWN_CHARS: Final = 80
LOOK_AGAIN_S: Final = 0.02
"""Before a request is refused because its model is unknown, what nodes have just told may be read."""
COMING_AGAIN_S: Final = 0.15
"""The same, where its files are known to be on their way: they may have come by now."""

Page = Callable[[Exchange, list[Header]], None]
Answer = Coroutine[Any, Any, Any]
Check = Callable[[Mapping[str, str]], str | None]
"""Raises for a caller who may not do this."""


@dataclass(frozen=True, slots=True)
class House:
    """What the pages speak of."""

    inference: Inference
    fleet: Callable[[], Fleet]
    view: View
    queue: Queue
    models: ModelPages
    events: ModelEvents
    agents: Agents
    metrics: Metrics
    keyring: Keyring
    cors: Cors
    tasks: Tasks
    clock: Callable[[], float]
    later: Callable[[float, Callable[[], None]], object]
    """Call it after so many seconds."""
    connected: Callable[[], bool]
    stopping: Callable[[], bool]
    request_timeout_s: float
    metrics_open: bool


class Routes:
    """The HTTP server's handler."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._pages: dict[str, Page] = {
            "/v1/models": self._models,
            "/v1/nodes": self._nodes,
            "/v1/queue": self._queue,
            "/models": self._router_models,
            "/models/sse": self._model_events,
            "/props": self._engine_page,
            "/slots": self._engine_page,
            "/sd/prometheus": self._discovery,
            "/metrics": self._metrics,
            **dict.fromkeys(PROBES, self._probe),
        }
        self._managed: dict[str, Callable[[bytes], Answer]] = {
            "/models/load": house.models.load,
            "/models/unload": house.models.unload,
        }
        self._reports: dict[str, Callable[[bytes], Answer]] = {
            "/v1/nodes/register": house.agents.register,
            "/v1/nodes/heartbeat": house.agents.heartbeat,
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or later."""
        request = exchange.request
        headers = self.headers(request.headers)
        try:
            if request.method == "OPTIONS" and self._house.cors.allows(request.headers):
                exchange.respond(204, b"", headers=[*headers, *self._house.cors.preflight(request.headers)])
            elif (op := POSTS.get(request.path)) is not None:
                self._infer(exchange, op, headers)
            elif (order := self._managed.get(request.path)) is not None:
                self._order(exchange, order, headers, self._house.keyring.check_admin)
            elif (order := self._reports.get(request.path)) is not None:
                self._order(exchange, order, headers, self._house.keyring.check)
            elif request.path == "/models" and request.method == "POST":
                self._order(exchange, self._house.models.fetch, headers, self._house.keyring.check_admin)
            elif request.method == "DELETE" and (model := _deleted(request)) is not None:
                self._delete(exchange, model, headers)
            else:
                self._page(exchange, headers)
        except PunaError as error:
            self._refuse(exchange, error, headers)

    def headers(self, asked: Mapping[str, str]) -> list[Header]:
        """What every answer to a request with the headers `asked` carries, the server's own refusals too."""
        return [*identified(asked), *self._house.cors.headers(asked)]

    def _infer(self, exchange: Exchange, op: str, headers: list[Header]) -> None:
        house, request_id = self._house, headers[0][1]
        self._expect_method(exchange, headers, "POST")
        tenant = house.keyring.check(exchange.request.headers)
        timeout_s = house.request_timeout_s
        ticket = admit(
            exchange.request, op, request_id=request_id, tenant=tenant, timeout_s=timeout_s, now=house.clock()
        )
        try:
            house.inference.begin(ticket, exchange, headers)
        except (ModelNotFound, ModelLoading) as error:
            wait_s = COMING_AGAIN_S if isinstance(error, ModelLoading) else LOOK_AGAIN_S
            house.later(wait_s, partial(self._infer_again, exchange, ticket, headers))

    def _infer_again(self, exchange: Exchange, ticket: Ticket, headers: list[Header]) -> None:
        """A model whose files have just come is known here a moment later than to whoever waited for them."""
        if exchange.closed:
            return
        try:
            self._house.inference.begin(ticket, exchange, headers)
        except PunaError as error:
            self._refuse(exchange, error, headers)

    def _page(self, exchange: Exchange, headers: list[Header]) -> None:
        path = exchange.request.path
        page = self._pages.get(path) or self._page_below(path)
        if page is None:
            raise NotFound(f"there is no page {path[:_PATH_SHOWN_CHARS]!r} here")
        more = ("POST", "DELETE") if path == "/models" else ()
        self._expect_method(exchange, headers, "GET", "HEAD", *more)
        if not (path in PROBES or (path == "/metrics" and self._house.metrics_open)):
            self._house.keyring.check(exchange.request.headers)
        page(exchange, headers)

    def _order(self, exchange: Exchange, order: Callable[[bytes], Answer], headers: list[Header], check: Check) -> None:
        self._expect_method(exchange, headers, "POST")
        check(exchange.request.headers)
        self._later(exchange, order(exchange.request.body), headers)

    def _delete(self, exchange: Exchange, model: str, headers: list[Header]) -> None:
        self._house.keyring.check_admin(exchange.request.headers)
        self._later(exchange, self._house.models.delete(model), headers)

    def _page_below(self, path: str) -> Page | None:
        if path.startswith(_MODEL) and len(path) > len(_MODEL):
            return self._model
        if path.startswith(_NODE) and len(path) > len(_NODE):
            return self._node
        return self._upstream if path.startswith(UPSTREAM) else None

    def _expect_method(self, exchange: Exchange, headers: list[Header], *allowed: str) -> None:
        if exchange.request.method not in allowed:
            headers.append(("allow", ", ".join(allowed)))
            raise MethodNotAllowed(f"this page takes {' and '.join(allowed)} only")

    def _refuse(self, exchange: Exchange, error: PunaError, headers: list[Header]) -> None:
        self._house.metrics.refusals.labels(error.code).inc()
        exchange.respond(error.http_status, error.body(), headers=[*headers, *remedy_headers(error)])
        path = quote(exchange.request.path[:_PATH_SHOWN_CHARS])
        facts = {"request": headers[0][1], "method": exchange.request.method[:16], "path": path, "error": error.code}
        log.info("request_refused", extra={"event": "request_refused", "status": error.http_status} | facts)

    # -- pages -------------------------------------------------------------------------------------------------------
    def _models(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, 200, models.listing(self._house.view()), headers)

    def _model(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, 200, models.one(self._house.view(), exchange.request.path[len(_MODEL) :]), headers)

    def _nodes(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, 200, nodes.listing(self._house.fleet(), self._house.clock()), headers)

    def _node(self, exchange: Exchange, headers: list[Header]) -> None:
        node = exchange.request.path[len(_NODE) :]
        _json(exchange, 200, nodes.one(self._house.fleet(), node, self._house.clock()), headers)

    def _queue(self, exchange: Exchange, headers: list[Header]) -> None:
        self._later(exchange, self._house.queue.listing(), headers)

    def _router_models(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, 200, self._house.models.listing(), headers)

    def _model_events(self, exchange: Exchange, headers: list[Header]) -> None:
        self._house.events.listen(exchange, headers)

    def _engine_page(self, exchange: Exchange, headers: list[Header]) -> None:
        request = exchange.request
        self._later(exchange, self._house.models.engine_page(request.path, request.query), headers)

    def _upstream(self, exchange: Exchange, headers: list[Header]) -> None:
        path = exchange.request.path
        kind = metrics.CONTENT_TYPE if path.endswith("/metrics") else JSON
        self._later(exchange, self._house.models.upstream(path), headers, kind)

    def _discovery(self, exchange: Exchange, headers: list[Header]) -> None:
        _json(exchange, 200, discovery.targets(self._house.fleet()), headers)

    def _later(self, exchange: Exchange, answer: Answer, headers: list[Header], kind: str = JSON) -> None:
        self._house.tasks.start(f"page {exchange.request.path}", self._answered(exchange, answer, headers, kind))

    async def _answered(self, exchange: Exchange, answer: Answer, headers: list[Header], kind: str) -> None:
        """What the page comes to, as JSON, or as it is if it is bytes; an answer is due whatever happens."""
        try:
            told = await answer
        except PunaError as error:
            self._refuse(exchange, error, headers)
        except Exception:
            self._refuse(exchange, PunaError("the page failed; the gateway's log says where"), headers)
            raise
        else:
            body = told if isinstance(told, bytes) else orjson.dumps(told)
            exchange.respond(200, body, content_type=kind, headers=headers)

    def _metrics(self, exchange: Exchange, headers: list[Header]) -> None:
        exchange.respond(200, self._house.metrics.text(), content_type=metrics.CONTENT_TYPE, headers=headers)

    def _probe(self, exchange: Exchange, headers: list[Header]) -> None:
        house, path = self._house, exchange.request.path
        state = (house.connected(), house.fleet(), house.stopping())
        if path == "/health":
            status, told = health.serving(*state)
        elif path == "/livez":
            status, told = health.alive()
        else:
            status, told = health.ready(*state)
        _json(exchange, status, told, headers)


def _deleted(request: Request) -> str | None:
    """The model that a DELETE means, by `/models?model=ID` as in llama.cpp, or `/models/ID`; None: another page."""
    for below in ("/models/", _MODEL):
        if request.path.startswith(below) and len(request.path) > len(below):
            return request.path[len(below) :]
    return request.query.get("model", "") if request.path == "/models" else None


def _json(exchange: Exchange, status: int, told: Any, headers: list[Header]) -> None:
    exchange.respond(status, orjson.dumps(told), headers=headers)
