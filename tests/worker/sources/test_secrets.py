"""Credentials by reference."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
from pathlib import Path

import pytest

from worker.sources import Denied
from worker.sources.secrets import NodeSecrets, Secret

TOKEN = "hf_verysecretindeed"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    return tmp_path


def put(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


async def test_a_secret_is_found_by_each_kind_of_reference(state: Path) -> None:
    put(state / "secrets" / "hub", f"{TOKEN}\n")
    elsewhere = put(state / "elsewhere", "other")
    secrets = NodeSecrets(state, {"named": elsewhere}, {"MINE": f" {TOKEN} "})
    assert await secrets.read("env:MINE") == TOKEN
    assert await secrets.read("secret:hub") == TOKEN
    assert await secrets.read("secret:named") == "other"
    assert await secrets.read(f"file:{elsewhere}") == "other"


async def test_a_key_names_a_part_of_json_of_lines_and_of_a_mounted_folder(state: Path) -> None:
    secrets = NodeSecrets(state, environ={"ALL": json.dumps({"token": "a", "other": "b", "number": 1})})
    lines = put(state / "lines", "# comment\ntoken: a\nexport other='b'\n")
    mounted = state / "mounted"
    mounted.mkdir()
    put(mounted / "token", "a")
    put(mounted / "other", "b")
    for reference in ("env:ALL", f"file:{lines}", f"file:{mounted}"):
        assert await secrets.read(reference, key="token") == "a"
        assert await secrets.read(reference, key="other") == "b"
        assert await secrets.read(f"{reference}#other", key="token") == "b"
    assert await secrets.read(f"file:{mounted}") == "a"
    for missing in ("env:ALL#number", "env:ALL#none", f"file:{lines}#none", f"file:{mounted}#none", "env:ALL#../x"):
        with pytest.raises(Denied):
            await secrets.read(missing)


@pytest.mark.parametrize(
    "reference",
    ["env:NONE", "env:EMPTY", "secret:none", "secret:../../etc/passwd", "file:relative", "text", "file:/dev/zero"],
)
async def test_what_is_missing_is_denied_by_its_reference_alone(state: Path, reference: str) -> None:
    with pytest.raises(Denied) as told:
        await NodeSecrets(state, environ={"EMPTY": " ", "OTHER": TOKEN}).read(reference)
    assert TOKEN not in str(told.value)


async def test_a_pipe_does_not_hold_the_worker_and_a_long_file_is_no_secret(state: Path) -> None:
    os.mkfifo(state / "pipe")
    put(state / "long", "x" * 70_000)
    (state / "bytes").write_bytes(b"\xff\xfe")
    for name in ("pipe", "long", "bytes"):
        with pytest.raises(Denied):
            await NodeSecrets(state, environ={}).read(f"file:{state / name}")


async def test_a_file_that_others_can_read_is_warned_of_once(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(state / "secrets" / "open", TOKEN, 0o644)
    put(state / "secrets" / "shut", TOKEN)
    secrets = NodeSecrets(state, environ={})
    with caplog.at_level(logging.WARNING):
        for name in ("open", "open", "shut"):
            await secrets.read(f"secret:{name}")
    assert [record.message for record in caplog.records] == ["secret_readable_by_others"]
    assert TOKEN not in "".join(str(vars(record)) for record in caplog.records)


async def test_a_secret_never_shows_itself(state: Path) -> None:
    secret = await NodeSecrets(state, environ={"MINE": TOKEN}).find("env:MINE")
    assert secret.reveal() == TOKEN
    for text in (
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!r}",
        repr([secret]),
        repr({"a": secret}),
    ):
        assert TOKEN not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.copy(secret)


async def test_of_several_variables_the_first_that_is_set_counts() -> None:
    secrets = NodeSecrets(Path("/none"), environ={"A": " ", "B": "b", "C": "c"})
    assert secrets.variable("A", "B", "C") == "b"
    assert secrets.variable("A") is None


def test_a_secret_is_told_apart_by_where_it_came_from() -> None:
    assert repr(Secret("secret:hub", TOKEN)) == "Secret(secret:hub)"
