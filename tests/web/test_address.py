"""Addresses as an operator writes them."""

from __future__ import annotations

import pytest

from web.address import is_loopback, split_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("host.example:0", ("host.example", 0)),
        ("[::1]:65535", ("::1", 65535)),
        (":8080", ("0.0.0.0", 8080)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["", "nowhere", "host:", "host:65536", "host:-1", "host:1e3", "host:\u0661", "8080"])
def test_what_is_no_address_is_told_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write HOST:PORT"):
        split_address(text)


def test_loopback_is_told_from_what_others_reach() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
