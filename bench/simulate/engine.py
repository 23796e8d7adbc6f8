"""A simulated engine: the HTTP of one llama-server, on a port of its own, in the simulation's process.

It answers as the real one does: `/health` says 503 while the model loads, everything else wants the engine's own key.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from bench.simulate import answer
from bench.simulate.requests import Asked, Slots
from web.exchange import Exchange
from web.limits import Limits
from web.server import Server

HOST: Final = "127.0.0.1"
KEY_VARIABLE: Final = "LLAMA_API_KEY"
_PUBLIC: Final = frozenset(("/health", "/v1/health"))
_CHAT: Final = frozenset(("/v1/chat/completions", "/v1/completions"))
_LIMITS: Final = Limits(idle_s=3600.0, header_s=60.0, body_s=60.0)


@dataclass(frozen=True, slots=True)
class Orders:
    """What the command line and the environment of an engine say."""

    port: int
    model: str
    slots: int
    context_tokens: int
    key: str

    @classmethod
    def of(cls, argv: tuple[str, ...], environment: Mapping[str, str]) -> Orders:
        """Read llama-server's own flags. Raises `ValueError` where one is missing."""
        flags = dict(itertools.pairwise(argv))
        try:
            port, model = int(flags["--port"]), flags["--alias"]
        except KeyError as error:
            raise ValueError(f"an engine is started with {error}") from error
        slots = int(flags.get("--parallel", "1"))
        return cls(port, model, slots, int(flags.get("--ctx-size", "4096")), environment.get(KEY_VARIABLE, ""))


class HttpEngine:
    """The server of one engine. `ready` is set when the model is loaded; a hung one answers nothing."""

    def __init__(self, orders: Orders, slots: Slots) -> None:
        self.ready = False
        self.hung = False
        self._orders = orders
        self._slots = slots
        self._server = Server(self._handle, limits=_LIMITS, join_window_s=0.0)

    async def start(self) -> None:
        """Listen. Raises `OSError` if somebody has the port."""
        await self._server.start(HOST, self._orders.port)

    async def stop(self) -> None:
        """The process is gone, and its sockets with it."""
        self.hung = False
        self._slots.end()
        await asyncio.shield(self._server.stop(0.0))

    def hang(self) -> None:
        """No answer from here on."""
        self.hung = True
        self._slots.halt()

    def _handle(self, exchange: Exchange) -> None:
        if self.hung:
            return
        path, key = exchange.request.path, exchange.request.headers.get("authorization", "")
        if path not in _PUBLIC and self._orders.key and key != f"Bearer {self._orders.key}":
            exchange.respond(401, answer.error(401, "Invalid API Key", "authentication_error"))
        elif not self.ready:
            exchange.respond(503, answer.error(503, "Loading model", "unavailable_error"))
        elif exchange.request.method == "GET":
            self._get(exchange, path)
        elif path in _CHAT:
            self._chat(exchange)
        else:
            exchange.respond(404, answer.error(404, "File Not Found", "not_found_error"))

    def _chat(self, exchange: Exchange) -> None:
        try:
            asked = Asked.of(exchange.request.body)
        except ValueError as problem:
            exchange.respond(400, answer.error(400, f"bad request: {problem}", "invalid_request_error"))
            return
        self._slots.ask(exchange, asked)

    def _get(self, exchange: Exchange, path: str) -> None:
        pages = {
            "/health": self._health,
            "/v1/health": self._health,
            "/v1/models": self._models,
            "/props": self._props,
            "/slots": self._states,
        }
        if path == "/metrics":
            exchange.respond(
                200, b"llamacpp:requests_processing %d\n" % len(self._slots.busy), content_type="text/plain"
            )
        elif page := pages.get(path):
            exchange.respond(200, orjson.dumps(page()))
        else:
            exchange.respond(404, answer.error(404, "File Not Found", "not_found_error"))

    def _health(self) -> object:
        return {"status": "ok"}

    def _models(self) -> object:
        meta = {"n_ctx_train": self._orders.context_tokens, "n_params": 1000, "size": 1000}
        one = {"id": self._orders.model, "object": "model", "created": 1, "owned_by": "llamacpp", "meta": meta}
        return {"object": "list", "data": [one]}

    def _props(self) -> object:
        settings = {"n_ctx": self._orders.context_tokens // self._slots.count}
        return {"total_slots": self._slots.count, "default_generation_settings": settings, "build_info": "simulated"}

    def _states(self) -> object:
        busy, n_ctx = len(self._slots.busy), self._orders.context_tokens // self._slots.count
        return [{"id": slot, "n_ctx": n_ctx, "is_processing": slot < busy} for slot in range(self._slots.count)]
