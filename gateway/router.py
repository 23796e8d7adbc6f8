"""Where a request goes, or why it goes nowhere: a plain function of the request and one view of the fleet."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from gateway.fleet import Fleet, Model
from schemas.errors import ModelNotFound, PunaError, Unavailable
from schemas.topology import HEARTBEAT_S

UNAVAILABLE_RETRY_S: Final = 30.0
"""Somebody has to mend something first: a file, a setting, memory."""


@dataclass(frozen=True, slots=True)
class Line:
    """Into the model's line. `demand`: no ready slot is free now, so cold nodes may be asked as well."""

    lane: str
    demand: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Into the line too, but nobody takes from it yet: `reason` says what is waited for."""

    lane: str
    reason: str
    demand: bool = True


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


def held(model: str, fleet: Fleet) -> str | None:
    """Why nobody takes a waiting request for `model`, or nothing: a slot will do."""
    known = fleet.models.get(model)
    return (known.reason or known.state) if known is not None and known.state != "ready" else None


def hopeless(model: str, fleet: Fleet) -> PunaError | None:
    """Why a request that waits for `model` need not wait any longer, or nothing."""
    if not fleet.whole:
        return None
    known = fleet.models.get(model)
    if known is not None:
        return _unavailable(known) if known.state == "unavailable" else None
    return Unavailable(f"model {model!r}: the node that served it has gone and has not come back", retry_after_s=10)


def _into_line(model: Model, lane: str) -> Route:
    if model.state == "ready":
        return Line(lane, demand=model.slots_busy >= model.slots_total)
    if model.state == "unavailable":
        return Refuse(_unavailable(model))
    return Hold(lane, model.reason or model.state)


def _unavailable(model: Model) -> Unavailable:
    return Unavailable(f"model {model.model!r} cannot be served now: {model.reason}", retry_after_s=UNAVAILABLE_RETRY_S)


def _not_found(model: str, fleet: Fleet) -> ModelNotFound:
    near = difflib.get_close_matches(model[:200], list(fleet.models)[:1000], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; GET /v1/models lists what there is"
    return ModelNotFound(f"model {model!r} does not exist here{hint}", param="model")
