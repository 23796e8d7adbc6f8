"""Request heads: they survive the trip, and odd headers are refused by name."""

import pytest

from schemas import subjects as s
from schemas.errors import InvalidName, InvalidRequest
from schemas.request import DEADLINE_DEFAULT_S, RequestHead, head_of


def test_a_head_survives_its_headers() -> None:
    head = RequestHead(
        "chat", "r-1", "puna.reply.g.1", epoch=2, deadline_s=12.5, framed=True, tenant="t", traceparent="00-a"
    )
    assert head_of(head.headers(), op=None, reply="", request_id="other") == head


def test_a_bare_request_takes_what_the_message_gives() -> None:
    head = head_of(None, op="chat", reply="_INBOX.1", request_id="fresh")
    assert head == RequestHead("chat", "fresh", "_INBOX.1")
    assert head.deadline_s == DEADLINE_DEFAULT_S


@pytest.mark.parametrize("value", ["", "0", "-1", "x", "1e3", "9" * 13, "²", "99999999"])
def test_a_deadline_that_is_no_sensible_number_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        head_of({s.H_DEADLINE: value}, op="chat", reply="r", request_id="i")
    assert caught.value.param == s.H_DEADLINE


def test_unknown_operations_and_odd_ids_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        head_of({s.H_OP: "nope"}, op=None, reply="r", request_id="i")
    with pytest.raises(InvalidName):
        head_of({s.H_REQUEST: "a b"}, op="chat", reply="r", request_id="i")
