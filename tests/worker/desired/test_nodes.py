"""Who counts when copies are shared out, with the clock in hand."""

from __future__ import annotations

from typing import Any

import orjson

from bus.kv import Entry
from worker.desired.nodes import FRESH_S, Labels, Nodes
from worker.desired.stagger import stagger_s

GRACE_S = 100.0


class Bucketless:
    """The clock, and what the nodes have been seen to tell."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kept: list[dict[str, Labels]] = []
        self.revision = 0
        self.nodes = self.anew()

    def anew(self) -> Nodes:
        """A later worker of this node."""
        return Nodes(
            None,  # type: ignore[arg-type]  # what it would read is handed over
            grace_s=GRACE_S,
            keep=lambda nodes: self.kept.append(dict(nodes)),
            monotonic=lambda: self.now,
        )

    def see(self, *names: str, anew: bool = False, after_s: float = 0.0, **beat: Any) -> dict[str, bool]:
        """Look; who counts, and whether it is here."""
        self.now += after_s
        entries: dict[str, Entry] = {}
        for name in names:
            self.revision += 1
            told = {"node": name, "labels": {"puna.node": name, "model.m": "Ready"}, "draining": False} | beat
            entries[name] = Entry(name, orjson.dumps(told), self.revision, 0.0)
        self.nodes.seen(entries, anew=anew)
        self.nodes._read_at = self.now  # type: ignore[attr-defined]
        return {name: node.here for name, node in (self.nodes.view() or {}).items()}


def test_a_node_that_is_away_counts_for_the_grace_and_no_longer() -> None:
    site = Bucketless()
    assert site.see("a", "b") == {"a": True, "b": True}
    assert site.see("a", after_s=10) == {"a": True, "b": False}
    assert site.see("a", after_s=GRACE_S) == {"a": True, "b": False}
    assert site.see("a", after_s=1) == {"a": True}


def test_a_node_that_is_back_in_time_has_lost_nothing() -> None:
    site = Bucketless()
    site.see("a", "b")
    site.see("a", after_s=10)
    assert site.see("a", "b", after_s=90) == {"a": True, "b": True}
    assert site.see("a", after_s=90) == {"a": True, "b": False}


def test_a_node_that_drains_counts_as_away() -> None:
    site = Bucketless()
    assert site.see("a", draining=True) == {"a": False}
    assert site.see("a", after_s=GRACE_S + 1, draining=True) == {}
    assert site.see("a", after_s=1) == {"a": True}


def test_the_time_in_which_the_server_could_not_be_asked_counts_against_nobody() -> None:
    site = Bucketless()
    site.see("a", "b")
    assert site.see("a", anew=True, after_s=10 * GRACE_S) == {"a": True, "b": False}
    assert site.see("a", after_s=GRACE_S) == {"a": True, "b": False}


def test_whoever_was_known_before_a_start_has_the_grace_again() -> None:
    site = Bucketless()
    site.see("a", "b")
    [known] = site.kept
    assert known == {"a": {"puna.node": "a"}, "b": {"puna.node": "b"}}, "the states of copies are not what lasts"
    site.nodes = site.anew()
    site.nodes.remember(known)
    assert site.nodes.view() is None, "nobody has been looked for yet"
    assert site.see("a", anew=True) == {"a": True, "b": False}
    assert site.see("a", after_s=GRACE_S + 1) == {"a": True}
    assert [set(each) for each in site.kept] == [{"a", "b"}, {"a"}]


def test_a_heartbeat_that_cannot_be_read_says_that_the_node_lives() -> None:
    site = Bucketless()
    site.see("a")
    for raw in (b"{", b"[]", b'{"labels": 1}'):
        site.revision += 1
        site.nodes.seen({"a": Entry("a", raw, site.revision, 0.0)}, anew=False)
        view = site.nodes.view()
        assert view is not None and view["a"].here and view["a"].labels["puna.node"] == "a"


def test_the_more_nodes_there_are_the_less_often_they_are_read() -> None:
    site = Bucketless()
    site.see(*(f"n{number}" for number in range(4)))
    assert site.nodes.due_at == FRESH_S
    site.see(*(f"n{number}" for number in range(500)))
    assert site.nodes.due_at == 50.0


def test_a_node_begins_at_a_moment_that_follows_from_its_name() -> None:
    assert stagger_s("a", 30) == 97 % 30
    assert stagger_s("ab", 30) == (97 * 31 + 98) % 30
    assert stagger_s("a" * 64, 30) == stagger_s("a" * 64, 30) < 30
    assert stagger_s("anything", 0) == 0
    moments = {stagger_s(f"node-{number}", 30) for number in range(300)}
    assert len(moments) == 30
