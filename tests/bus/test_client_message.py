"""What is written for a publish, and what is read out of headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.message import check_subscription, encode_headers, parse_headers, publish_command
from schemas.errors import BodyTooLarge, InvalidName

KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True).filter(lambda k: k not in ("Status", "Description"))
VALUES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs"), max_codepoint=0x2FFF), max_size=40)


@given(st.dictionaries(KEYS, VALUES, min_size=1))
def test_headers_come_out_as_they_went_in(headers: dict[str, str]) -> None:
    assert parse_headers(encode_headers(headers)) == headers


@given(st.text(max_size=40))
def test_no_value_can_end_its_line(value: str) -> None:
    block = encode_headers({"A": value, "B": "b"})
    assert block.count(b"\r") == block.count(b"\n") == 4
    assert parse_headers(block)["B"] == "b"


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_headers(raw: bytes) -> None:
    assert isinstance(parse_headers(raw), dict)


@pytest.mark.parametrize("key", ["", "a b", "a:b", "a\r\nb", "ä"])
def test_a_key_that_is_no_token_is_refused(key: str) -> None:
    with pytest.raises(InvalidName):
        encode_headers({key: "x"})


def test_the_servers_status_line_is_found() -> None:
    assert parse_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    assert parse_headers(b"NATS/1.0 409 Consumer Deleted\r\nX: 1\r\n\r\n") == {
        "Status": "409",
        "Description": "Consumer Deleted",
        "X": "1",
    }


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB x 0", "a\tb", "a\n", "x" * 5000])
def test_a_subject_cannot_inject_or_break_a_command(subject: str) -> None:
    with pytest.raises(InvalidName):
        publish_command(subject, b"", "", None, 100)
    if subject:
        with pytest.raises(InvalidName):
            publish_command("good", b"", subject, None, 100)


def test_headers_count_against_max_payload() -> None:
    block = len(encode_headers({"A": "b"}))
    assert publish_command("s", b"x" * (100 - block), "", {"A": "b"}, 100).startswith(b"HPUB s ")
    with pytest.raises(BodyTooLarge):
        publish_command("s", b"x" * (101 - block), "", {"A": "b"}, 100)
    with pytest.raises(BodyTooLarge):
        publish_command("s", b"x" * 101, "", None, 100)


@pytest.mark.parametrize("subject", ["", "a..b", ".a", "a.", "a.>.b", "a*.b", "a b", "a.b>", "a\n"])
def test_a_subscription_that_the_server_would_refuse_is_refused_before(subject: str) -> None:
    with pytest.raises(InvalidName):
        check_subscription(subject, None)


def test_wildcards_in_their_places_are_fine() -> None:
    for subject in ("a", "*", ">", "a.*.c", "a.>"):
        check_subscription(subject, "workers")
