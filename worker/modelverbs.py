"""The verbs that tell of models, their files and the node's health: `models`, `check`, `files`, `health`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson

from bus.connection import Message
from bus.endpoint import Handler
from schemas.errors import ModelNotFound
from worker.health import Check, Health, page
from worker.modelpages import ModelPages
from worker.orders import CheckOrder, FilesOrder, Order, read_order
from worker.store.manifest import Copy


class ModelVerbs:
    """They change nothing. `copies` are those on the node's disks, `health` is asked anew each time."""

    def __init__(
        self,
        node: str,
        models: ModelPages,
        copies: Callable[[], Mapping[str, Copy]],
        health: Callable[[], Health],
    ) -> None:
        self._node = node
        self._models = models
        self._copies = copies
        self._health = health

    def verbs(self) -> dict[str, Handler]:
        """By name."""
        return {"models": self._list, "check": self._check, "files": self._files, "health": self._well}

    def _list(self, message: Message) -> bytes:
        read_order(Order, message.payload)
        return orjson.dumps({"node": self._node, **self._models.listing()})

    def _check(self, message: Message) -> bytes:
        """One model: is it on its way, loading, ready?"""
        order = read_order(CheckOrder, message.payload)
        return orjson.dumps({"node": self._node, **self._models.one(order.model)})

    def _files(self, message: Message) -> bytes:
        order = read_order(FilesOrder, message.payload)
        copy = self._copies().get(order.model)
        if copy is None:
            raise ModelNotFound(f"node {self._node} has no copy of {order.model[:80]!r}", param="model")
        manifest = copy.manifest
        told = {
            "node": self._node,
            "model": copy.model,
            "folder": str(copy.folder),
            "source": manifest.source,
            "revision": manifest.revision,
            "size_bytes": manifest.size_bytes,
            "in_place": manifest.in_place,
            "broken": copy.broken,
        }
        files = [each.model_dump(mode="json", exclude={"modified_ns"}, exclude_none=True) for each in manifest.files]
        return orjson.dumps(told | {"files": files})

    def _well(self, message: Message) -> bytes:
        """The three probes of the node's own HTTP, for who cannot reach that."""
        read_order(Order, message.payload)
        health = self._health()
        pages = {"livez": (health.live(), "dead"), "healthz": (health.healthy(), "unhealthy")}
        pages["readyz"] = (health.ready(), "unready")
        return orjson.dumps({"node": self._node} | {name: _told(*each) for name, each in pages.items()})


def _told(checks: list[Check], bad: str) -> dict[str, object]:
    return page(checks, bad)[1]
