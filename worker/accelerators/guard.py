"""Accelerators that are not taken as they are: a stranger's, a blocked one, one that the engine cannot compute with."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from schemas.node import Device
from worker.accelerators.cards import pairs
from worker.accelerators.listed import Seen
from worker.accelerators.listing import EngineList

log = logging.getLogger(__name__)

UNLISTED: Final = "the engine does not list it: it was built without {backend}, or does not know this device or driver"


class Inner(Protocol):
    """What is wrapped."""

    backend: str

    def discover(self) -> bool:
        """Whether there is any such device."""
        ...

    def sample(self) -> list[Device]:
        """The devices of now."""
        ...

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """What pins an engine."""
        ...


class Stranger:
    """An extension's: what it raises is logged when it begins, and its devices are its own and well-formed."""

    def __init__(self, backend: str, inner: Any) -> None:
        self.backend = backend
        self._inner = inner
        self._failing = False

    def discover(self) -> bool:
        """Whether it has devices; it has none if it fails."""
        return bool(self._call("discover"))

    def sample(self) -> list[Device]:
        """Its devices, those alone that bear its name."""
        found = self._call("sample")
        mine = cast(list[Any], list(found)) if isinstance(found, list | tuple) else []  # pyright: ignore[reportUnknownArgumentType]
        return [
            device for device in mine if isinstance(device, Device) and device.device.startswith(f"{self.backend}:")
        ]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Its variables."""
        found = self._call("environment", devices)
        pairs_of = cast(Mapping[Any, Any], found).items() if isinstance(found, Mapping) else ()
        return {str(name): str(value) for name, value in pairs_of}

    def _call(self, verb: str, *arguments: Any) -> Any:
        try:
            answer = getattr(self._inner, verb)(*arguments)
        except Exception:
            if not self._failing:
                fields = {"event": "accelerator_failed", "accelerator": self.backend, "verb": verb}
                log.exception("accelerator_failed", extra=fields)
            self._failing = True
            return None
        self._failing = False
        return answer


class Hidden:
    """A blocked one. Its driver is never asked; engines are kept from seeing its devices."""

    def __init__(self, inner: Inner) -> None:
        self.backend = inner.backend
        self.inner = inner

    def discover(self) -> bool:
        """Always: there is something to hide."""
        return True

    def sample(self) -> list[Device]:
        """None."""
        return []

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """What hides all of them."""
        return self.inner.environment(())


class Chosen(Hidden):
    """One of whose devices the node may have only some: those that are named, and parts of a card that is."""

    def __init__(self, inner: Inner, names: Collection[str]) -> None:
        super().__init__(inner)
        self._names = frozenset(names)

    def discover(self) -> bool:
        """Whether there is any such device."""
        return self.inner.discover()

    def sample(self) -> list[Device]:
        """Those alone."""
        return [each for each in self.inner.sample() if self._names & {each.device, each.parent}]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """What pins an engine to some of them."""
        return self.inner.environment(devices)


class Unlisted(Hidden):
    """One whose devices are there while the engine has no such backend. Those that the engine reaches by another
    backend are told of there; the rest are told of with the reason why nothing runs on them."""

    def __init__(self, inner: Inner, listing: EngineList) -> None:
        super().__init__(inner)
        self._listing = listing

    def sample(self) -> list[Device]:
        """The devices that the engine cannot reach."""
        seen = [Seen(device) for device in self.inner.sample()]
        reached = {other.device.device for _, other in pairs(self._listing.read(), seen)}
        reason = UNLISTED.format(backend=self.backend.upper())
        left = [each.device for each in seen if each.device.device not in reached]
        return [device.model_copy(update={"reason": device.reason or reason}) for device in left]
