"""Who may call."""

from __future__ import annotations

import hashlib

import pytest

from schemas.errors import AuthenticationFailed, NotAllowed
from web.keys import BadKey, Keyring, OpenDoor, keys_for, load_keys, parse_file, parse_key


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


def test_a_name_is_no_part_of_its_key() -> None:
    with pytest.raises(AuthenticationFailed):
        Keyring([parse_key("team:s3cret", "x")]).check({"x-api-key": "team:s3cret"})


def test_keys_of_the_file_and_keys_given_are_one_ring(tmp_path) -> None:
    path = tmp_path / "keys"
    path.write_text("filed:one\n")
    ring = load_keys(path, ["given:two"])
    assert [ring.check({"x-api-key": key}) for key in ("one", "two")] == ["filed", "given"]


def test_a_bad_key_that_was_given_is_named_by_its_place() -> None:
    with pytest.raises(BadKey, match=r"api_keys\[1\]"):
        load_keys(None, ["fine", "two words"])


def test_only_named_keys_manage_and_without_any_key_everybody_does() -> None:
    keys = [parse_key("ops:one", "x"), parse_key("team:two", "x")]
    ring = Keyring(keys, admins=["ops"])
    assert ring.check_admin({"x-api-key": "one"}) == "ops"
    assert ring.check({"x-api-key": "two"}) == "team"
    with pytest.raises(NotAllowed, match="admin_keys"):
        ring.check_admin({"x-api-key": "two"})
    with pytest.raises(NotAllowed):
        Keyring(keys).check_admin({"x-api-key": "one"})
    with pytest.raises(AuthenticationFailed):
        ring.check_admin({"x-api-key": "wrong"})
    assert Keyring(keys, admins=["*"]).check_admin({"x-api-key": "two"}) == "team"
    assert Keyring().check_admin({}) is None


def test_a_name_among_those_that_manage_which_no_key_has_is_refused_at_the_start() -> None:
    with pytest.raises(BadKey, match="no key is named 'opps'; there is ops"):
        load_keys(None, ["ops:one"], admins=["opps"])


@pytest.mark.parametrize("listen", ["0.0.0.0:1", ":1", "[::]:1", "192.0.2.7:1", "a-name.example:1"])
def test_off_loopback_without_a_key_the_door_stays_shut_and_says_how_to_open_it(listen: str) -> None:
    with pytest.raises(OpenDoor, match=r"name:key', and put them there\. Or listen on 127\.0\.0\.1"):
        keys_for(listen, None, [], remedy="put them there")
    assert len(keys_for(listen, None, ["a", "b"], remedy="")) == 2


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_on_loopback_no_key_is_needed(listen: str) -> None:
    assert len(keys_for(listen, None, [], remedy="")) == 0
