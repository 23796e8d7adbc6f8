"""The self-check of permissions, against the server's own judgement."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import BusDenied
from bus.permissions import USER_INFO, Denied, allowed, check_permissions, covers, overlaps, require_permissions

USERS = """
authorization { users: [
  { user: free, password: p }
  { user: worker, password: p, permissions: {
      publish: { allow: ["puna.>", "$JS.API.>", "$SYS.REQ.USER.INFO"], deny: ["puna.task.>"] }
      subscribe: { allow: ["puna.infer.>", "_INBOX.>"] } } }
  { user: mute, password: p, permissions: { publish: "puna.>", subscribe: ">" } }
  { user: deaf, password: p, permissions: { publish: ">", subscribe: "puna.>" } }
] }
"""


@pytest.fixture
def server(new_nats_server: Any) -> Any:
    return new_nats_server(USERS)


async def test_a_user_without_limits_may_do_all(server: Any, new_bus: Any) -> None:
    bus = await new_bus(server, user="free", password="p")
    assert await check_permissions(bus, publish=["a.>", "$JS.API.>"], subscribe=[">"]) == []


async def test_what_is_not_allowed_is_named(server: Any, new_bus: Any) -> None:
    bus = await new_bus(server, user="worker", password="p")
    found = await check_permissions(
        bus, publish=["puna.queue.*.*", "puna.task.load", "other"], subscribe=["puna.infer.*.m", "puna.node.n.*"]
    )
    assert found == [
        Denied("publish", "puna.task.load", "worker"),
        Denied("publish", "other", "worker"),
        Denied("subscribe", "puna.node.n.*", "worker"),
    ]
    assert str(found[1]) == "NATS user 'worker' may not publish to other"
    assert bus.denials == {}, "the check itself tries nothing"


async def test_a_user_who_may_not_even_ask_is_told_so(server: Any, new_bus: Any) -> None:
    bus = await new_bus(server, user="mute", password="p")
    assert await check_permissions(bus, publish=["puna.a"], subscribe=[]) == [Denied("publish", USER_INFO, "mute")]


async def test_a_user_who_hears_no_answers_is_told_so(server: Any, new_bus: Any) -> None:
    bus = await new_bus(server, user="deaf", password="p")
    assert await check_permissions(bus, publish=["puna.a"], subscribe=[]) == [Denied("subscribe", "_INBOX.>", "deaf")]


SUBJECTS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    tokens = draw(st.lists(st.sampled_from(["a", "b", "*"]), min_size=0, max_size=3))
    tail = [">"] if not tokens or draw(st.booleans()) else []
    return ".".join(tokens + tail)


@given(patterns(), patterns(), SUBJECTS)
def test_covering_and_overlapping_agree_with_what_patterns_match(one: str, other: str, subject: str) -> None:
    if covers(one, other) and covers(other, subject):
        assert covers(one, subject)
    if covers(one, subject) and covers(other, subject):
        assert overlaps(one, other)


def test_a_deny_list_alone_allows_the_rest() -> None:
    assert allowed("a.b", {"deny": ["a.c"]})
    assert not allowed("a.*", {"deny": ["a.c"]})
    assert not allowed("a.>", {"allow": ["a.*"]})


async def test_a_start_without_a_permission_says_all_that_is_missing(server: Any, new_bus: Any) -> None:
    bus = await new_bus(server, user="worker", password="p")
    with pytest.raises(BusDenied) as caught:
        await require_permissions(bus, publish=["other", "puna.task.load"], subscribe=["puna.node.n.*"])
    for subject in ("other", "puna.task.load", "puna.node.n.*"):
        assert f"to {subject}" in caught.value.message
    assert "permissions" in caught.value.message


async def test_who_may_not_ask_is_let_through(server: Any, new_bus: Any, caplog: Any) -> None:
    bus = await new_bus(server, user="mute", password="p")
    await require_permissions(bus, publish=["other"], subscribe=[])
    assert "permissions_unknown" in caplog.text
