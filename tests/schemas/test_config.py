"""Settings: precedence, and errors that say where and what."""

import pytest
from pydantic import BaseModel, ConfigDict

from schemas.config import ConfigError, load


class Listener(BaseModel):
    model_config = ConfigDict(extra="forbid")
    listen: str = "127.0.0.1:1"
    limit_bytes: int = 10


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    slots: int = 1


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    node: str = "n"
    http: Listener = Listener()
    models: tuple[Item, ...] = ()
    tags: list[str] = []


def test_command_line_wins_over_environment_over_file_over_default() -> None:
    text = "node: file\nhttp: {listen: 'file:1', limit_bytes: 3}\n"
    environ = {"PUNA_HTTP__LISTEN": "env:1", "PUNA_NODE": "env", "OTHER": "x", "PUNA_API_KEYS": "not ours"}
    got = load(Settings, text=text, environ=environ, overrides={"node": "cli", "http": {"listen": None}})
    assert (got.node, got.http.listen, got.http.limit_bytes, got.tags) == ("cli", "env:1", 3, [])


def test_lists_come_from_the_environment_as_json() -> None:
    assert load(Settings, environ={"PUNA_TAGS": '["a", "b"]'}).tags == ["a", "b"]


def test_a_wrong_key_is_named_with_file_line_and_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:3: http\.limit_byte: no such key; did you mean 'limit_bytes'"):
        load(Settings, text="node: a\nhttp:\n  limit_byte: 3\n", source="f.yaml")


def test_a_wrong_value_inside_a_list_is_placed() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:3: models\.0\.slots: .*integer"):
        load(Settings, text="models:\n  - model: a\n    slots: many\n", source="f.yaml")


def test_a_missing_value_names_its_parent() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:2: models\.0\.model: Field required"):
        load(Settings, text="models:\n  - slots: 2\n", source="f.yaml")


def test_environment_references_are_filled_in_or_fail_by_name() -> None:
    assert load(Settings, text="node: a-${env.X}", environ={"X": "1"}).node == "a-1"
    with pytest.raises(ConfigError, match=r"f\.yaml:1: node: the environment has no X"):
        load(Settings, text="node: ${env.X}", source="f.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1", "just text", "\tx: 1"])
def test_what_is_no_yaml_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        load(Settings, text=text, source="f.yaml")


def test_an_empty_file_is_all_defaults() -> None:
    assert load(Settings, text="# nothing\n") == Settings()
