"""`GET /models/sse`: each change of a model's status, as llama.cpp's router tells it.

An event is a hint to look at `GET /models` again. Nothing is looked at while nobody listens; a listener that does not
read is cut off, so that what waits for it stays small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from gateway.fleet import Fleet
from gateway.routermode import Known, Status, entry, known_models, progress_data
from gateway.shelf import Shelf
from gateway.view import View
from schemas.errors import LineFull
from web import Exchange, Header

LOOK_EVERY_S: Final = 0.1
LISTENERS_LIMIT: Final = 1000
UNREAD_LIMIT_BYTES: Final = 256 << 10
Event = dict[str, Any]


class ModelEvents:
    """Owner of the open event streams."""

    def __init__(self, view: View, keep_alive_s: float) -> None:
        self._view = view
        self._keep_alive_s = keep_alive_s
        self._listeners: set[Exchange] = set()
        self._seen: tuple[Fleet, Shelf] | None = None
        self._known: Mapping[str, Known] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._spoke_at = 0.0

    @property
    def listeners(self) -> int:
        """Open streams."""
        return len(self._listeners)

    def listen(self, exchange: Exchange, headers: list[Header]) -> None:
        """Tell this client every change from now on. Raises `LineFull` when too many listen."""
        if len(self._listeners) >= LISTENERS_LIMIT:
            raise LineFull(f"{LISTENERS_LIMIT} clients follow the models already", retry_after_s=10)
        if not self._listeners:
            moment = self._view()
            self._seen, self._known = (moment.fleet, moment.shelf), known_models(moment)
            self._spoke_at = asyncio.get_running_loop().time()
            self._again()
        self._listeners.add(exchange)
        exchange.on_closed = lambda: self._listeners.discard(exchange)
        no_buffer = [("cache-control", "no-cache"), ("x-accel-buffering", "no")]
        exchange.start(200, content_type="text/event-stream", headers=[*headers, *no_buffer])
        exchange.write(b": listening\n\n")

    def stop(self) -> None:
        """End all streams. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for exchange in list(self._listeners):
            exchange.finish()
        self._listeners.clear()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        if not self._listeners:
            self._timer = None
            return
        self._again()
        moment, now = self._view(), asyncio.get_running_loop().time()
        if self._seen is None or moment.fleet is not self._seen[0] or moment.shelf is not self._seen[1]:
            self._seen, before = (moment.fleet, moment.shelf), self._known
            self._known = known_models(moment)
            told = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in changes(before, self._known))
            if told:
                self._say(told, now)
        if now - self._spoke_at >= self._keep_alive_s:
            self._say(b": keep-alive\n\n", now)

    def _say(self, data: bytes, now: float) -> None:
        self._spoke_at = now
        for exchange in list(self._listeners):
            if exchange.buffered_bytes > UNREAD_LIMIT_BYTES:
                self._listeners.discard(exchange)
                exchange.abort()
            else:
                exchange.write(data)


def changes(before: Mapping[str, Known], after: Mapping[str, Known]) -> Iterator[Event]:
    """The events between two looks. A model that is new makes clients load their list again, as in llama.cpp."""
    if after.keys() - before.keys():
        yield {"model": "*", "event": "models_reload"}
    for name in before.keys() - after.keys():
        yield {"model": name, "event": "model_remove"}
    for name, known in after.items():
        old = before[name].status if name in before else None
        if known.status != old:
            yield from _status_events(known, old)


def _status_events(known: Known, old: Status | None) -> Iterator[Event]:
    status, fetched = known.status, old is not None and old.value == "downloading"
    if status.value == "downloading":
        if not fetched:
            yield {"model": known.model, "event": "model_status", "data": {"status": status.value}}
        if status.download is not None:
            yield {"model": known.model, "event": "download_progress", "data": status.download.data()}
        return
    if fetched and status.failed:
        yield {"model": known.model, "event": "download_failed", "data": {"reason": status.reason}}
    elif fetched:
        yield {"model": known.model, "event": "download_finished"}
    yield {"model": known.model, "event": "model_status", "data": _status_data(known, old)}


def _status_data(known: Known, old: Status | None) -> dict[str, Any]:
    status = known.status
    told: dict[str, Any] = {"status": status.value}
    if status.value == "loading" and status.progress is not None:
        told["progress"] = progress_data(status.progress)
    if status.value == "loaded" and (old is None or old.value != "loaded"):
        told["info"] = entry(known)
    if status.failed:
        told["failed"] = True
    return told | ({"reason": status.reason} if status.reason else {})
