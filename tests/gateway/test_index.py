"""The index of models says what one made from scratch would say, whatever came before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.index import ModelIndex
from schemas.node import Engine, Heartbeat, Offer, Pressure

NODES, MODELS = ("n1", "n2", "n3"), ("a", "b", "c")
engines = st.builds(
    Engine,
    engine=st.sampled_from(["e1", "e2"]),
    model=st.sampled_from(MODELS),
    devices=st.just(()),
    state=st.sampled_from(["ready", "starting", "crashed"]),
    slots_total=st.just(2),
    slots_busy=st.integers(0, 2),
    since=st.just(0.0),
)
offers = st.builds(Offer, model=st.sampled_from(MODELS), cost=st.none() | st.integers(1, 9))


def beats(node: str) -> st.SearchStrategy[Heartbeat]:
    return st.builds(
        Heartbeat,
        node=st.just(node),
        boot_id=st.just("b"),
        sequence=st.just(1),
        version=st.just("1"),
        started_at=st.floats(1, 3),
        draining=st.booleans(),
        engines=st.lists(engines, max_size=3).map(tuple),
        offers=st.lists(offers, max_size=3).map(tuple),
        pressure=st.builds(Pressure, service_seconds_median=st.none() | st.floats(1, 2)),
    )


fleets = st.fixed_dictionaries({}, optional={node: beats(node) for node in NODES})


@given(st.lists(fleets, max_size=6))
def test_after_any_changes_it_is_as_if_made_from_scratch(views: list[dict[str, Heartbeat]]) -> None:
    index = ModelIndex(gone=False)
    for view in views:
        before, kept = index.follow({}) if not view else None, dict(index.follow(view))
        scratch = ModelIndex(gone=False).follow(view)
        assert kept == dict(scratch)
        assert list(kept) == sorted(kept)
        assert before is None or not before


def test_a_model_that_did_not_change_is_the_same_object_and_old_views_stay() -> None:
    def beat(node: str, **more: object) -> Heartbeat:
        return Heartbeat.model_validate(
            {"node": node, "boot_id": "b", "sequence": 1, "version": "1", "started_at": 1} | more
        )

    index = ModelIndex(gone=False)
    one, two = beat("n1", offers=[{"model": "a"}]), beat("n2", offers=[{"model": "b"}])
    first = index.follow({"n1": one, "n2": two})
    second = index.follow({"n1": one, "n2": beat("n2", offers=[{"model": "c"}])})
    assert second["a"] is first["a"]
    assert (list(first), list(second)) == (["a", "b"], ["a", "c"])
