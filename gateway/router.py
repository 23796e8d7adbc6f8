"""Where a request goes, or why it goes nowhere: a plain function of the request and one view of the fleet."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from gateway.fleet import Fleet, Loading, Model
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


def decide(model: str, lane: str, fleet: Fleet) -> Route:
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
    return Refuse(_not_found(model, fleet))


def held(model: str, fleet: Fleet) -> Loading | None:
    """Why nobody takes a waiting request for `model`, or nothing: a slot will do."""
    known = fleet.models.get(model)
    return None if known is None else known.loading


def hopeless(model: str, fleet: Fleet) -> PunaError | None:
    """Why a request that waits for `model` need not wait any longer, or nothing."""
    if not fleet.whole:
        return None
    known = fleet.models.get(model)
    if known is not None:
        return _unavailable(known) if known.state == "unavailable" else None
    return Unavailable(f"model {model!r}: the node that served it has gone and has not come back", retry_after_s=10)


def not_in_time(model: str, waited_s: float, loading: Loading) -> ModelLoading:
    """The error of a request whose deadline came while its model was not there."""
    retry_s = LOADING_RETRY_S if loading.eta_s is None else min(max(loading.eta_s, 1.0), _RETRY_MOST_S)
    error = ModelLoading(
        f"model {model!r} was not ready within {waited_s:.3g} s: {loading.text}", retry_after_s=retry_s
    )
    error.loading = loading.told()
    return error


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
