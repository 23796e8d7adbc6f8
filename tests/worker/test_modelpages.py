"""The models of a node, one entry each, and how each stands."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import ModelNotFound
from schemas.model import CopyProgress, CopyRecord
from schemas.node import Capabilities, Engine, Heartbeat, Offer
from worker.modelpages import ModelPages
from worker.standing import standing


def engine(name: str, state: Any, model: str = "m", **more: Any) -> Engine:
    return Engine(engine=name, model=model, devices=("cpu:0",), state=state, slots_total=2, since=0, **more)


def copy(model: str, state: Any, **more: Any) -> CopyRecord:
    return CopyRecord(model=model, node="n1", state=state, since=5, **more)


def pages(
    *, engines: tuple[Engine, ...] = (), offers: tuple[Offer, ...] = (), copies: tuple[CopyRecord, ...] = ()
) -> ModelPages:
    beat = Heartbeat(node="n1", boot_id="b", sequence=1, version="1", started_at=7, engines=engines, offers=offers)
    served = {each.model for each in (*offers, *(one for one in copies if one.state == "Ready"))}
    return ModelPages(lambda: beat, lambda: served, lambda: {each.model: each for each in copies})


def test_a_model_with_two_engines_is_listed_once_and_its_best_engine_counts() -> None:
    can = Capabilities(can=("chat",))
    found = pages(
        engines=(engine("engine-0", "starting"), engine("engine-1", "ready", slots_busy=1, capabilities=can)),
        offers=(Offer(model="m"),),
    ).listing()
    (one,) = found["data"]
    assert (one["id"], one["state"], one["engines"]) == ("m", "ready", ["engine-0", "engine-1"])
    assert (one["slots_total"], one["slots_busy"], one["meta"]) == (2, 1, {"can": ["chat"]})


def test_models_without_an_engine_are_listed_with_what_a_request_would_meet() -> None:
    offers = (
        Offer(model="cold", cost=1, load_seconds=4.0),
        Offer(model="later", reason="another model loads"),
        Offer(model="never", never=True, reason="needs 40 GiB"),
    )
    moving = CopyProgress(phase="fetching", bytes_total=100, bytes_done=25, eta_s=9.0)
    copies = (copy("coming", "Downloading", progress=moving), copy("fresh", "Ready"))
    found = {one["id"]: one for one in pages(offers=offers, copies=copies).listing()["data"]}
    assert list(found) == ["cold", "coming", "fresh", "later", "never"]
    assert [one["state"] for one in found.values()] == [
        "unloaded", "downloading", "unloaded", "unloaded", "unavailable",
    ]  # fmt: skip
    assert (found["cold"]["reason"], found["cold"]["eta_s"]) == (None, 4.0)
    assert (found["coming"]["progress"], found["coming"]["eta_s"], found["coming"]["copy"]) == (
        0.25,
        9.0,
        "Downloading",
    )
    assert (found["later"]["reason"], found["never"]["reason"]) == ("another model loads", "needs 40 GiB")


def test_one_model_is_told_of_and_another_is_not_found() -> None:
    known = pages(
        engines=(engine("engine-0", "starting", progress=0.25, load_seconds=8.0, reason="loading the model"),)
    )
    one = known.one("m")
    assert (one["state"], one["progress"], one["eta_s"], one["reason"]) == ("loading", 0.25, 6.0, "loading the model")
    with pytest.raises(ModelNotFound, match="nobody"):
        known.one("nobody")


def test_a_crashed_engine_is_loading_as_long_as_somebody_waits_for_it() -> None:
    again = engine("engine-0", "crashed", reason="signal 9", next_retry_at=1.0)
    assert standing([again], None).state == "loading"
    broken = again.model_copy(update={"breaker_open": True})
    assert (standing([broken], None).state, standing([broken], None).reason) == ("unavailable", "signal 9")
    assert standing([broken], Offer(model="m", cost=1)).state == "unloaded"


def test_an_engine_that_makes_room_is_not_waited_for_where_another_can_be_started() -> None:
    going = engine("engine-0", "ready", yielding=True)
    assert standing([going], Offer(model="m", cost=4)).state == "unloaded"
    assert standing([going], None).state == "loading"
