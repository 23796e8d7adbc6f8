"""Where a request goes, or why it goes nowhere: a plain function of the request and one view of the fleet."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.fleet import Fleet, Loading, Model
from gateway.ondisk import COMING, OnDisk
from schemas.errors import ModelLoading, ModelNotFound, PunaError, Unavailable
from schemas.topology import HEARTBEAT_S

UNAVAILABLE_RETRY_S: Final = 30.0
"""Somebody has to mend something first: a file, a setting, memory."""
LOADING_RETRY_S: Final = 5.0
"""While nobody can tell how long a load will take."""
_RETRY_MOST_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Line:
    """Into the model's line: engines that take from it are there."""

    lane: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Into the line too, but nobody takes from it yet: `loading` says what is waited for."""

    lane: str
    loading: Loading


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nowhere."""

    error: PunaError


Route = Line | Hold | Refuse
Disks = Callable[[str], OnDisk | None]
"""What is known of a model's files."""


def no_disks(model: str) -> OnDisk | None:
    """Nothing is known of any."""
    return None


def decide(model: str, lane: str, fleet: Fleet, disks: Disks = no_disks) -> Route:
    """The route of a new request for `model`.

    A model that exists and is not ready is never "not found". Before the fleet is known, or while it has no node at
    all, nothing can be said of any model: that is a 503, which clients repeat.
    """
    if not fleet.whole:
        return Refuse(Unavailable("the fleet is not known yet; try again in a moment", retry_after_s=1))
    known = fleet.models.get(model)
    if known is not None:
        return _into_line(known, lane)
    if not fleet.nodes:
        text = "no worker is connected; start one with 'puna worker'"
        return Refuse(Unavailable(text, retry_after_s=HEARTBEAT_S))
    disk = disks(model)
    return Refuse(_not_found(model, fleet)) if disk is None else _from_disk(model, lane, disk)


def held(model: str, fleet: Fleet, disks: Disks = no_disks) -> Loading | None:
    """Why nobody takes a waiting request for `model`, or nothing: a slot will do."""
    known = fleet.models.get(model)
    if known is not None:
        return known.loading
    disk = disks(model)
    return None if disk is None else _on_disk(disk)


def hopeless(model: str, fleet: Fleet, disks: Disks = no_disks) -> PunaError | None:
    """Why a request that waits for `model` need not wait any longer, or nothing."""
    if not fleet.whole:
        return None
    known = fleet.models.get(model)
    if known is not None:
        return _unavailable(known) if known.state == "unavailable" else None
    disk = disks(model)
    if disk is not None:
        route = _from_disk(model, "", disk)
        return route.error if isinstance(route, Refuse) else None
    return Unavailable(f"model {model!r}: the node that served it has gone and has not come back", retry_after_s=10)


def not_in_time(model: str, waited_s: float, loading: Loading) -> ModelLoading:
    """The error of a request whose deadline came while its model was not there."""
    return _still_loading(f"model {model!r} was not ready within {waited_s:.3g} s: {loading.text}", loading)


def _still_loading(text: str, loading: Loading) -> ModelLoading:
    retry_s = LOADING_RETRY_S if loading.eta_s is None else min(max(loading.eta_s, 1.0), _RETRY_MOST_S)
    error = ModelLoading(text, retry_after_s=retry_s)
    error.loading = loading.told()
    return error


def _from_disk(model: str, lane: str, disk: OnDisk) -> Route:
    """The route to a model of which no heartbeat tells, by what its files are doing."""
    loading = _on_disk(disk)
    if (disk.state == "ready" and not disk.offered_late) or disk.state == "verifying":
        return Hold(lane, loading)
    if disk.state in COMING:
        return Refuse(_still_loading(f"model {model!r} is not there yet: {loading.text}", loading))
    if disk.state == "deleting":
        return Refuse(ModelNotFound(f"model {model!r} does not exist here: {loading.reason}", param="model"))
    text = f"model {model!r} cannot be served now: {loading.reason}"
    return Refuse(Unavailable(text, retry_after_s=UNAVAILABLE_RETRY_S))


def _on_disk(disk: OnDisk) -> Loading:
    if disk.state != "ready":
        return Loading(disk.state, disk.reason or disk.state, disk.progress, disk.eta_s)
    where = ", ".join(disk.ready[:3])
    if disk.offered_late:
        return Loading("unavailable", f"{where} has its files and starts no engine for it; see the log of that node")
    return Loading("unloaded", f"its files have just come to {where}")


def _into_line(model: Model, lane: str) -> Route:
    if model.state == "unavailable":
        return Refuse(_unavailable(model))
    return Line(lane) if model.loading is None else Hold(lane, model.loading)


def _unavailable(model: Model) -> Unavailable:
    return Unavailable(f"model {model.model!r} cannot be served now: {model.reason}", retry_after_s=UNAVAILABLE_RETRY_S)


def _not_found(model: str, fleet: Fleet) -> ModelNotFound:
    near = difflib.get_close_matches(model[:200], list(fleet.models)[:1000], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; GET /v1/models lists what there is"
    return ModelNotFound(f"model {model!r} does not exist here{hint}", param="model")
