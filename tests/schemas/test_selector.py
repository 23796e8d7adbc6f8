import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.selector import Expression, Preference, Selector, Term, holders

NODE = {"gpu": "A100", "count": "4", "zone": "b"}


@pytest.mark.parametrize(
    ("key", "operator", "values", "holds"),
    [
        ("gpu", "In", ("A100", "H100"), True),
        ("gpu", "In", ("H100",), False),
        ("none", "In", ("x",), False),
        ("gpu", "NotIn", ("H100",), True),
        ("gpu", "NotIn", ("A100",), False),
        ("none", "NotIn", ("x",), True),
        ("gpu", "Exists", (), True),
        ("none", "Exists", (), False),
        ("gpu", "DoesNotExist", (), False),
        ("none", "DoesNotExist", (), True),
        ("count", "Gt", ("3",), True),
        ("count", "Gt", ("4",), False),
        ("count", "Lt", ("5",), True),
        ("count", "Lt", ("4",), False),
        ("gpu", "Gt", ("3",), False),
        ("none", "Lt", ("3",), False),
    ],
)
def test_each_operator(key, operator, values, holds):
    assert Expression(key=key, operator=operator, values=values).holds(NODE) is holds


@pytest.mark.parametrize(
    ("operator", "values"),
    [
        ("In", ()),
        ("NotIn", ()),
        ("Exists", ("x",)),
        ("DoesNotExist", ("x",)),
        ("Gt", ()),
        ("Gt", ("a",)),
        ("Lt", ("1", "2")),
    ],
)
def test_values_that_do_not_suit_the_operator_are_refused(operator, values):
    with pytest.raises(ValidationError):
        Expression(key="k", operator=operator, values=values)


def test_an_empty_selector_takes_every_node():
    assert Selector().holds({})


def test_terms_are_alternatives_and_their_expressions_must_all_hold():
    big = Expression(key="count", operator="Gt", values=("7",))
    there = Expression(key="gpu", operator="Exists")
    zone = Expression(key="zone", operator="In", values=("b",))
    assert Selector(terms=(Term(match=(there, big)), Term(match=(there, zone)))).holds(NODE)
    assert not Selector(terms=(Term(match=(there, big)),)).holds(NODE)


def test_labels_and_terms_must_both_hold():
    zone = Term(match=(Expression(key="zone", operator="In", values=("b",)),))
    assert Selector(labels={"gpu": "A100"}, terms=(zone,)).holds(NODE)
    assert not Selector(labels={"gpu": "H100"}, terms=(zone,)).holds(NODE)


def test_preferred_nodes_come_first():
    zone = Term(match=(Expression(key="zone", operator="In", values=("b",)),))
    selector = Selector(preferred=(Preference(weight=10, term=zone),))
    nodes = [(f"n{number}", selector.weight(NODE if number == 7 else {})) for number in range(20)]
    assert holders("m", nodes, 1) == ("n7",)


NODES = st.sets(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=30)


@given(NODES, st.integers(0, 40), st.randoms())
def test_everybody_computes_the_same_holders(nodes, copies, random):
    listed = [(node, 0) for node in nodes]
    first = holders("m", listed, copies)
    random.shuffle(listed)
    assert holders("m", listed, copies) == first
    assert len(first) == min(copies, len(nodes))


@given(NODES, st.integers(1, 10))
def test_a_node_that_goes_moves_only_its_own_share(nodes, copies):
    before = holders("m", [(node, 0) for node in nodes], copies)
    gone = before[0]
    after = holders("m", [(node, 0) for node in nodes if node != gone], copies)
    assert set(before) - {gone} <= set(after)


def test_copies_spread_over_the_nodes():
    nodes = [(f"node-{number}", 0) for number in range(10)]
    counts = dict.fromkeys((name for name, _ in nodes), 0)
    for number in range(1000):
        for holder in holders(f"model-{number}", nodes, 2):
            counts[holder] += 1
    assert min(counts.values()) > 130 and max(counts.values()) < 270
