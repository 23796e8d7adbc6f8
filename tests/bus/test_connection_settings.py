"""Where the settings come from, and that secrets stay secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bus.settings import DEFAULT_URL, NatsSettings
from schemas.errors import InvalidRequest


def context(home: Path, name: str, **values: Any) -> dict[str, str]:
    """The environment with a context of the `nats` command line."""
    folder = home / "nats" / "context"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values))
    return {"XDG_CONFIG_HOME": str(home), "NATS_CONTEXT": name}


def test_nothing_given_is_the_local_server() -> None:
    assert NatsSettings.from_env({}).servers == (DEFAULT_URL,)


def test_an_argument_beats_the_environment_beats_the_context(tmp_path: Path) -> None:
    environ = context(tmp_path, "lab", url="nats://context:1", user="ann", password="secret")
    assert NatsSettings.from_env(environ).url == "nats://context:1"
    environ["NATS_URL"] = "nats://environment:2"
    found = NatsSettings.from_env(environ)
    assert (found.url, found.user) == ("nats://environment:2", "ann")
    assert NatsSettings.from_env(environ, url="nats://argument:3", user=None).servers == ("nats://argument:3",)


def test_a_context_brings_its_files_and_domain(tmp_path: Path) -> None:
    environ = context(
        tmp_path,
        "lab",
        url="tls://a",
        creds="~/x.creds",
        ca="/ca.pem",
        nkey="",
        jetstream_domain="hub",
        description="d",
    )
    found = NatsSettings.from_env(environ)
    assert found.creds_file == Path("~/x.creds").expanduser()
    assert found.tls_ca_file == Path("/ca.pem")
    assert found.nkey_seed_file is None
    assert found.jetstream_domain == "hub"


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="lab"):
        NatsSettings.from_env({"XDG_CONFIG_HOME": str(tmp_path), "NATS_CONTEXT": "lab"})


def test_credentials_move_out_of_the_url() -> None:
    found = NatsSettings(url="nats://ann:p%40ss@a:1,nats://b")
    assert found.servers == ("nats://a:1", "nats://b:4222")
    assert found.user == "ann"
    assert found.password is not None
    assert found.password.get_secret_value() == "p@ss"
    token = NatsSettings(url="nats://t0ken@a").token
    assert token is not None
    assert token.get_secret_value() == "t0ken"


def test_secrets_show_nowhere() -> None:
    found = NatsSettings(url="nats://ann:hidden1@a", token="hidden2")
    assert "hidden" not in repr(found) + str(found) + found.model_dump_json()


@pytest.mark.parametrize("url", ["http://a", "ws://a:1", "nats://", "", "nats://a,bogus://b", "nats://a:99999"])
def test_an_address_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        NatsSettings(url=url)


@pytest.mark.parametrize("given", [{"url": "tls://a"}, {"tls_ca_file": "/ca"}, {"tls_required": True}])
def test_asking_for_tls_in_any_way_makes_it_required(given: dict[str, Any]) -> None:
    assert NatsSettings(**given).wants_tls
    assert not NatsSettings(url="nats://a").wants_tls


def test_an_address_without_scheme_or_port_is_completed() -> None:
    assert NatsSettings(url="a, b:5 ,[::1]:6").servers == ("nats://a:4222", "nats://b:5", "nats://[::1]:6")
