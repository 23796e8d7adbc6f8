"""Answers to the question which files a model has on this node: the verb `copy` of its control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from bus.connection import Bus, Message
from bus.endpoint import Endpoint
from schemas.errors import InvalidRequest, ModelNotFound, NotAllowed, Unavailable
from schemas.model import CopyRecord, CopyState
from schemas.peer import CopyFile, CopyQuestion, CopyTold
from worker.peers.address import Address
from worker.store.manifest import Copy

TIMEOUT_S: Final = 5.0
AT_ONCE: Final = 16
_COMING: Final[frozenset[CopyState]] = frozenset(("Pending", "Downloading", "Verifying", "Updating"))


@dataclass(frozen=True, slots=True)
class Shelf:
    """What this node has. `opened`: its disks were looked at."""

    copies: Callable[[], Mapping[str, Copy]]
    states: Callable[[], Mapping[str, CopyRecord]]
    opened: Callable[[], bool]


class CopyAnswers:
    """Hears from `start` to `stop`. With `shares` false each question is refused."""

    def __init__(self, bus: Bus, node: str, shelf: Shelf, address: Address, *, shares: bool) -> None:
        self._node = node
        self._shelf = shelf
        self._address = address
        self._shares = shares
        identity = {"name": "copy", "subject": bus.names.node(node, "copy"), "queue_group": ""}
        self._endpoint = Endpoint(
            bus, identity, self._asked, title="copy", metadata={}, running_limit_requests=AT_ONCE, timeout_s=TIMEOUT_S
        )

    def start(self) -> None:
        """Hear questions."""
        self._endpoint.listen()

    def stop(self) -> None:
        """Hear none any more. Safe to call twice."""
        self._endpoint.close()

    def told(self, model: str) -> CopyTold:
        """The copy. Raises `Unavailable` where it may be there later, else `ModelNotFound` or `NotAllowed`."""
        copy, record = self._shelf.copies().get(model), self._shelf.states().get(model)
        state = record.state if record is not None else None
        if not self._shelf.opened():
            raise Unavailable(f"node {self._node} has not opened its store yet", retry_after_s=1.0)
        if state == "Deleting":
            raise ModelNotFound(f"node {self._node} is deleting its copy of {model}", param="model")
        if copy is None and state in _COMING:
            raise Unavailable(f"node {self._node} has not got all of {model} yet ({state})", retry_after_s=5.0)
        if copy is None:
            raise ModelNotFound(f"node {self._node} has no copy of {model}", param="model")
        return self._whole(copy)

    def _whole(self, copy: Copy) -> CopyTold:
        manifest = copy.manifest
        if copy.broken:
            raise Unavailable(f"the files of {copy.model} on node {self._node} are not what they were")
        files = [
            CopyFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256, role=file.role)
            for file in manifest.files
            if file.sha256 is not None
        ]
        if manifest.in_place or len(files) < len(manifest.files) or not files:
            text = f"node {self._node} serves {copy.model} where it lies: it has no files of it to give"
            raise NotAllowed(text, param="model")
        return CopyTold(
            node=self._node,
            model=copy.model,
            revision=manifest.revision,
            main=manifest.main,
            files=tuple(files),
        )

    def _asked(self, message: Message) -> bytes:
        try:
            asked = CopyQuestion.model_validate_json(message.payload)
        except ValidationError as error:
            raise InvalidRequest('send {"model": ID}', param="model") from error
        if not self._shares:
            raise NotAllowed(f"node {self._node} shares no files (peers.enabled)")
        told = self.told(asked.model)
        if asked.host is not None and self._address.url_for(asked.host) is None:
            text = f"the HTTP of node {self._node} cannot be reached from there: set its http.listen or http.advertise"
            raise NotAllowed(text)
        return told.model_dump_json().encode()
