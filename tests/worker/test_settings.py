"""What an operator may set, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.config import ConfigError
from web.keys import OpenDoor
from worker.settings import WorkerSettings, default_node, model_argument, settings_from


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("node: file\nslots: 2\nnats: {url: nats://file:1}\n")
    environ = {"PUNA_NODE": "environ", "NATS_URL": "nats://environ:1", "PUNA_SLOTS": "3"}
    settings = settings_from(config, environ, {"node": "line", "slots": None})
    assert (settings.node, settings.slots, settings.nats.url) == ("line", 3, "nats://environ:1")


def test_node_name_is_the_default_node_and_is_made_legal() -> None:
    assert default_node({"NODE_NAME": "rack 1/gpu_7"}) == "rack-1-gpu_7"
    assert settings_from(None, {"NODE_NAME": "gpu7"}, {}).node == "gpu7"


def test_models_are_read_with_their_flags(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "models:\n- {model: org/m:Q4, path: /m.gguf, devices: 'cuda:0,cuda:1', flags: {flash-attn: 'on'}}\n"
    )
    (model,) = settings_from(config, {}, {}).models
    assert (model.devices, model.flags, model.slots) == (("cuda:0", "cuda:1"), {"flash-attn": "on"}, None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models:\n- {model: '../x', path: /m}\n", "models.0.model"),
        ("http: {listen: nowhere}\n", "HOST:PORT"),
        ("node: 'a b'\n", "letters, digits"),
        ("models: [{model: m, path: /a}, {model: m, path: /b}]\n", "named twice"),
        ("slots: 0\n", "c.yaml:1: slots"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=told):
        settings_from(config, {}, {})


def test_a_model_of_the_command_line_is_name_and_path() -> None:
    assert model_argument("m=/x=y.gguf") == {"model": "m", "path": "/x=y.gguf"}
    with pytest.raises(ValueError, match="NAME=PATH"):
        model_argument("m")


def test_an_open_door_needs_a_key() -> None:
    with pytest.raises(OpenDoor, match="api_keys_file"):
        WorkerSettings.model_validate({"http": {"listen": "0.0.0.0:1"}}).http.keys()
    open_door = WorkerSettings.model_validate({"http": {"listen": ":1", "api_keys": "a,b"}})
    assert len(open_door.http.keys()) == 2
    assert "a" not in repr(open_door.http.api_keys)
