"""The record of a running `puna up`."""

from __future__ import annotations

import pytest

from gateway.cli.exits import CliError
from gateway.cli.running import only_one, read_record, write_record
from gateway.cli.target import Target


def test_the_record_is_found_while_it_runs_and_never_after(tmp_path) -> None:
    assert read_record(tmp_path) is None
    with only_one(tmp_path):
        assert read_record(tmp_path) is None
        write_record(tmp_path, {"nats": "nats://u:p@127.0.0.1:1"})
        assert read_record(tmp_path)["nats"] == "nats://u:p@127.0.0.1:1"
    assert read_record(tmp_path) is None


def test_a_record_left_by_a_crash_is_none(tmp_path) -> None:
    with only_one(tmp_path):
        pass
    write_record(tmp_path, {"nats": "nats://127.0.0.1:1"})
    assert read_record(tmp_path) is None


def test_the_record_is_for_the_user_alone(tmp_path) -> None:
    with only_one(tmp_path):
        write_record(tmp_path, {})
        assert (tmp_path / "up.json").stat().st_mode & 0o777 == 0o600


def test_a_second_up_on_the_folder_is_refused_with_the_remedy(tmp_path) -> None:
    with only_one(tmp_path), pytest.raises(CliError, match="--state-dir"), only_one(tmp_path):
        pass


def test_commands_find_the_fleet_of_this_machine_unless_told_otherwise(tmp_path, monkeypatch) -> None:
    for name in ("NATS_URL", "NATS_CONTEXT", "PUNA_GATEWAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PUNA_STATE_DIR", str(tmp_path))
    assert Target().nats_settings().url == "nats://127.0.0.1:4222"
    with only_one(tmp_path):
        write_record(tmp_path, {"nats": "nats://u:p@127.0.0.1:1", "gateway": "http://127.0.0.1:2"})
        assert Target().nats_settings().url == "nats://127.0.0.1:1"
        assert Target().nats_settings().user == "u"
        assert Target().gateway_url() == "http://127.0.0.1:2"
        assert Target(nats="nats://said:3").nats_settings().url == "nats://said:3"
        monkeypatch.setenv("NATS_URL", "nats://environment:4")
        assert Target().nats_settings().url == "nats://environment:4"
        assert Target(gateway="http://said:5/v1/").gateway_url() == "http://said:5"


def test_a_nats_context_is_honoured(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)
    context = tmp_path / "nats" / "context" / "lab.json"
    context.parent.mkdir(parents=True)
    context.write_text('{"url": "nats://lab:4222", "user": "me"}')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("NATS_CONTEXT", "lab")
    assert Target().nats_settings().url == "nats://lab:4222"
    monkeypatch.setenv("NATS_CONTEXT", "gone")
    with pytest.raises(CliError, match="nats context ls"):
        Target().nats_settings()
