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


class Waiting(BaseModel):
    model_config = ConfigDict(extra="forbid")
    wait_s: float = 1
    wait_ms: float = 1
    each_bytes_per_s: dict[str, int] = {}


class WithUnits(Settings):
    waiting: Waiting = Waiting()
    all_of_them: list[Waiting] = []


@pytest.mark.parametrize(
    ("text", "seconds"), [("15s", 15), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172800), ("7", 7)]
)
def test_a_time_may_have_its_unit(text: str, seconds: float) -> None:
    assert load(WithUnits, text=f"waiting: {{wait_s: {text}}}").waiting.wait_s == seconds
    assert load(WithUnits, environ={"PUNA_WAITING__WAIT_S": text}).waiting.wait_s == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("10M", 10 << 20), ("200MB", 200 << 20), ("1.5 GiB", 3 << 29), ("8K", 8192), ("12", 12)]
)
def test_a_size_may_have_its_unit(text: str, count: int) -> None:
    got = load(WithUnits, text=f"http: {{limit_bytes: '{text}'}}\nwaiting: {{each_bytes_per_s: {{hf: '{text}'}}}}")
    assert (got.http.limit_bytes, got.waiting.each_bytes_per_s) == (count, {"hf": count})


def test_units_are_read_in_lists_of_groups_and_milliseconds_too() -> None:
    got = load(WithUnits, text="all_of_them: [{wait_s: 2m, wait_ms: 1s}]")
    assert (got.all_of_them[0].wait_s, got.all_of_them[0].wait_ms) == (120, 1000)


@pytest.mark.parametrize("text", ["waiting: {wait_s: soon}", "waiting: {wait_s: 5x}", "http: {limit_bytes: 5s}"])
def test_what_is_no_amount_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:1: "):
        load(WithUnits, text=text, source="f.yaml")


TOML = """
node = "a-${env.X}"
[http]
listen = "file:1"
[[models]]
model = "m"
slots = 2
"""


def test_a_file_may_be_toml() -> None:
    got = load(Settings, text=TOML, source="f.toml", environ={"X": "1"})
    assert (got.node, got.http.listen, got.models) == ("a-1", "file:1", (Item(model="m", slots=2),))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nnode = x\n", r"f\.toml: not TOML: .*line 2"),
        ("[http]\nlimit_byte = 3", r"f\.toml: http\.limit_byte: no such key; did you mean 'limit_bytes'"),
        ("[[models]]\nmodel = 'm'\nslots = 'many'", r"f\.toml: models\.0\.slots: .*integer"),
        ("node = '${env.X}'", r"f\.toml: node: the environment has no X"),
    ],
)
def test_a_mistake_in_toml_is_told_with_file_and_key(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(Settings, text=text, source="f.toml")
