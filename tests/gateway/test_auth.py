"""Who may call."""

from __future__ import annotations

import hashlib

import pytest

from gateway.auth import BadKey, Keyring, load_keys, parse_file, parse_key
from schemas.errors import AuthenticationFailed


def test_an_empty_ring_lets_everybody_in() -> None:
    assert Keyring().check({}) is None


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer s3cret"}, {"authorization": "bearer  s3cret "}, {"x-api-key": "s3cret"}],
)
def test_both_headers_carry_a_key(headers: dict[str, str]) -> None:
    assert Keyring([parse_key("team:s3cret", "x")]).check(headers) == "team"


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "other"}, {"authorization": "Basic s3cret"}])
def test_without_the_right_key_the_answer_is_401(headers: dict[str, str]) -> None:
    with pytest.raises(AuthenticationFailed) as error:
        Keyring([parse_key("team:s3cret", "x")]).check(headers)
    assert error.value.http_status == 401
    assert "s3cret" not in error.value.message


def test_a_file_may_hold_hashed_keys_and_comments() -> None:
    digest = hashlib.sha256(b"hashed").hexdigest()
    keys = parse_file(f"# the team\nteam:plain\n\nops:sha256:{digest}\nbare\nsha256:{digest}\n", "keys")
    assert [key.name for key in keys][:2] == ["team", "ops"]
    assert Keyring(keys[1:2]).check({"x-api-key": "hashed"}) == "ops"
    assert Keyring(keys[2:3]).check({"x-api-key": "bare"}).startswith("key-")  # type: ignore[union-attr]


def test_a_bad_line_is_named_by_number_and_never_shown() -> None:
    with pytest.raises(BadKey) as error:
        parse_file("good:key\nbad with space s3cret\n", "keys")
    assert "keys:2" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_an_empty_file_is_no_open_door(tmp_path) -> None:
    path = tmp_path / "keys"
    path.write_text("# nothing yet\n")
    with pytest.raises(BadKey):
        load_keys(path, [])
