"""What the model commands say and read: amounts, names, states, specs and letters, without a fleet."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from gateway.cli import deadletters, desired
from gateway.cli.amounts import bar, bytes_text, count_text, left_text, progress_text, seconds_text
from gateway.cli.copies import copy_text
from gateway.cli.exits import CliError
from gateway.cli.naming import name_of, what_to_pull
from gateway.cli.spec import read_specs, spec_of, written
from gateway.cli.tables import engine_rows
from gateway.cli.tasklist import why, why_still, why_unheard
from gateway.fleet import Fleet
from gateway.shelf import Shelf, Stored
from gateway.view import Moment
from schemas.errors import PunaError
from schemas.model import CopyProgress, CopyRecord, ModelRecord
from schemas.node import Heartbeat
from schemas.source import parse_source
from schemas.task import DeadTask, TaskRecord

NOW = 1_000_000.0
PROGRESS = CopyProgress(
    phase="fetching", bytes_total=98_400_000, bytes_done=40_200_000, files_total=1, speed_bytes_per_s=12.1e6, eta_s=5.0
)


def beat(node: str, **more: Any) -> Heartbeat:
    return Heartbeat(node=node, boot_id="b", sequence=1, version="1", started_at=NOW, **more)


def task(state: str, **more: Any) -> TaskRecord:
    fields = {"task": "t-1", "op": "download", "model": "m", "node": "n1", "created": NOW, "since": NOW, **more}
    return TaskRecord.model_validate({**fields, "state": state})


def moment(**sources: str | None) -> Moment:
    records = {name: ModelRecord(model=name, source=source) if source else None for name, source in sources.items()}
    stored = {name: Stored(name, record, MappingProxyType({})) for name, record in records.items()}
    return Moment(Fleet(whole=True), Shelf(MappingProxyType(stored), whole=True), 0.0)


# -- amounts -----------------------------------------------------------------------------------------------------------
def test_amounts_have_one_unit_that_fits() -> None:
    assert [bytes_text(n) for n in (0, 999, 1500, 98_400_000, 4.1e9, 2e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "98.4 MB",
        "4.1 GB",
        "2.0 TB",
    ]
    assert [count_text(n) for n in (950, 134_515_008, 7_240_000_000)] == ["950", "135M", "7.24B"]
    assert [seconds_text(n) for n in (-1, 59, 61, 7200, 90_000)] == ["0s", "59s", "1m", "2h", "1d"]
    assert [left_text(n) for n in (0.2, 42, 65, 3660)] == ["1s", "42s", "1m05s", "1h01m"]


def test_a_bar_is_never_full_before_the_end() -> None:
    assert [bar(part, 4).count("█") for part in (-1, 0, 0.24, 0.99, 1, 2)] == [0, 0, 0, 3, 4, 4]


def test_progress_says_how_much_how_fast_and_how_long() -> None:
    assert progress_text(PROGRESS) == "40 %, 40.2 MB of 98.4 MB, 12.1 MB/s, 5s left"
    assert progress_text(PROGRESS, cells=5).startswith("██░░░ 40 %")
    assert progress_text(CopyProgress(phase="resolving")) == "asks the source what there is"
    many = PROGRESS.model_copy(update={"files_total": 3, "files_done": 1, "speed_bytes_per_s": None, "eta_s": None})
    assert progress_text(many) == "40 %, 40.2 MB of 98.4 MB, file 2 of 3"


# -- states ------------------------------------------------------------------------------------------------------------
def test_a_copy_that_is_not_fine_says_why_and_when_it_is_tried_again() -> None:
    copy = CopyRecord(model="m", node="n1", state="Failed", since=NOW, reason="no route", next_retry_at=NOW + 8)
    assert copy_text(copy, NOW) == "failed: no route, next try in 8s"
    assert copy_text(copy, NOW + 9) == "failed: no route, next try now"
    assert copy_text(CopyRecord(model="m", node="n1", state="Ready", since=NOW), NOW) == "ready"


def test_a_download_stands_beside_the_engines_of_its_node() -> None:
    copy = CopyRecord(model="new", node="n1", state="Downloading", since=NOW - 5, progress=PROGRESS)
    [row] = engine_rows([beat("n1")], NOW, [copy])
    assert (row["node"], row["model"], row["since"]) == ("n1", "new", "5s")
    assert "40 %" in row["state"] and "12.1 MB/s" in row["state"] and "5s left" in row["state"]


def test_no_task_is_just_waiting() -> None:
    assert "puna worker" in why_unheard(None, [])
    assert "node n2 is not connected" in why_unheard("n2", [beat("n1")])
    assert "busy" in why_unheard(None, [beat("n1")])
    assert why_unheard(None, [beat("n1", draining=True)]) == "all nodes are draining"
    queued = task("queued", reason="n1 cannot take it: no room", next_retry_at=NOW + 2)
    assert why(queued, NOW) == "n1 cannot take it: no room; next try in 2s"
    assert why(task("dead", error="given up"), NOW) == "given up; see `puna dlq ls`"
    assert "40 %" in why(task("running", progress=PROGRESS), NOW, [beat("n1")])
    assert "n1 is away" in why(task("running", progress=PROGRESS), NOW, [beat("n2")])
    assert "being cancelled" in why(task("running", cancel=True), NOW, [beat("n1")])
    assert "no worker is connected" in why(task("retrying", next_retry_at=NOW - 1), NOW, [])


def test_a_task_whose_node_went_says_who_goes_on_with_it_and_until_when() -> None:
    for_any = task("running", since=NOW, delivery="$JS.ACK.PUNA_TASKS.tasks_any.1.2.3.4.0")
    named = task("running", since=NOW, delivery="$JS.ACK.PUNA_TASKS.tasks_node_n1.1.2.3.4.0")
    assert why_still(for_any, [beat("n1"), beat("n2")]) is None
    assert why_still(for_any, [beat("n2")]) == (
        "n1 is away; the task goes on when it comes back, or within 30 s on another node"
    )
    assert (
        why_still(for_any, []) == why_still(named, [beat("n2")]) == ("n1 is away; the task goes on when it comes back")
    )
    anew = beat("n1").model_copy(update={"started_at": NOW + 1})
    assert why_still(named, [anew, beat("n2")]) == "n1 was started anew and takes it up again"
    assert "another node does within 30 s" in (why_still(for_any, [anew, beat("n2")]) or "")


# -- what to pull ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://a/b", "a/b"),
        ("hf://a/b@main:Q4_K_M", "a/b:Q4_K_M"),
        ("hf://a/b#x/model-Q8-00001-of-00003.gguf", "a/b:model-Q8"),
        ("https://host/x/model.gguf?download=1", "model"),
        ("s3://bucket/folder/model.gguf", "model"),
        ("s3://bucket/folder/", "folder"),
        ("oci://n/ns/b/bucket/o/model.gguf", "model"),
        ("file:///models/model-00001-of-00002.gguf", "model"),
    ],
)
def test_a_source_suggests_its_name(source: str, name: str) -> None:
    assert name_of(parse_source(source)) == name
    assert what_to_pull(source, None, moment()).model == name
    assert what_to_pull(source, "mine", moment()).model == "mine"


def test_a_known_model_is_pulled_from_where_it_came_and_a_path_is_a_file() -> None:
    assert what_to_pull("chat", None, moment(chat="hf://a/b")).source == "hf://a/b"
    assert what_to_pull("a/b:Q4", None, moment()).source == "hf://a/b:Q4"
    assert what_to_pull("/models/x.gguf", None, moment()).source == "file:///models/x.gguf"


@pytest.mark.parametrize("text", ["nonsense", "ftp://x/y", "https://user:pass@host/x.gguf", "hf://", "chat"])
def test_what_cannot_be_pulled_is_said_with_a_right_example(text: str) -> None:
    with pytest.raises(CliError) as told:
        what_to_pull(text, None, moment(chat=None))
    assert told.value.code == 2
    assert "pass" not in told.value.message.replace("password", "")


# -- specs -------------------------------------------------------------------------------------------------------------
SPEC = """\
model: chat
source: hf://a/b:Q4
placement: {copies: all}
---
model: embed
source: https://host/x.gguf
profile:
  context_tokens: 512
"""


def test_specs_are_read_and_written_alike() -> None:
    first, second = read_specs(SPEC, "spec.yaml")
    assert (first.model, first.placement.copies, second.profile.context_tokens) == ("chat", "all", 512)
    assert read_specs(written([first, second]), "again") == [first, second]
    changed = first.model_copy(update={"generation": 7, "deleting": True})
    assert spec_of(changed) == spec_of(first)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SPEC.replace("copies", "copys"), "spec.yaml:3: placement.copys: no such field; did you mean 'copies'?"),
        (SPEC.replace("512", "3"), "spec.yaml:8: profile.context_tokens: Input should be greater"),
        (SPEC.replace("hf://a/b:Q4", "ftp://x"), "spec.yaml:2: source: source 'ftp://x': the scheme is none of"),
        (SPEC.replace("source: https://host/x.gguf\n", ""), "spec.yaml:5: source: it is missing"),
        (SPEC.replace("embed", "chat"), "model 'chat' is there twice"),
        ("- 1\n", "spec.yaml:1: a model is a mapping"),
        ("", "it holds no model"),
        ("a: [", "not YAML"),
        ("model: m\nsource: hf://a/b\nparameters: {token: s3cret}\n", "a secret must not be written here"),
        ("model: m\nsource: hf://a/b\ntoken_ref: hf_abcdef\n", "never the secret itself"),
    ],
)
def test_a_wrong_spec_names_the_field_its_line_and_the_right_one(text: str, told: str) -> None:
    with pytest.raises(CliError) as error:
        read_specs(text, "spec.yaml")
    assert told in error.value.message
    assert "s3cret" not in error.value.message and "hf_abcdef" not in error.value.message


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    with pytest.raises(CliError) as error:
        read_specs(SPEC.replace("copies", "copys").replace("512", "3"), "spec.yaml")
    assert len(error.value.message.splitlines()) == 2


def test_an_editor_that_makes_a_mistake_is_opened_again_with_what_is_wrong(tmp_path, monkeypatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text(
        f'#!/bin/sh\ncp "$1" {tmp_path}/seen\nif grep -q "^# puna" "$1"; then sed -i "s/sorce/source/" "$1"; '
        'else sed -i "s/source/sorce/; s/copies: all/copies: 2/" "$1"; fi\n'
    )
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    [before, _] = read_specs(SPEC, "spec.yaml")
    edited = desired._edited(before)  # pyright: ignore[reportPrivateUsage]
    assert edited is not None and edited.placement.copies == 2
    assert "did you mean 'source'?" in (tmp_path / "seen").read_text()
    monkeypatch.setenv("VISUAL", "true")
    assert desired._edited(before) is None  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setenv("VISUAL", "false")
    with pytest.raises(CliError, match="nothing was changed"):
        desired._edited(before)  # pyright: ignore[reportPrivateUsage]


# -- dead letters ------------------------------------------------------------------------------------------------------
def letter(body: dict[str, Any] | None) -> deadletters.Letter:
    about = {"op": "download", "subject": "puna.task.download", "node": "n1", "state": "dead", "code": "x"}
    return deadletters.Letter(7, DeadTask.model_validate({**about, "error": "e", "at": NOW, "body": body}))


def body(given: dict[str, Any] | None, *changes: str) -> dict[str, Any]:
    changed, removed = deadletters._changes(changes)  # pyright: ignore[reportPrivateUsage]
    return deadletters._body(letter(given), changed, removed)  # pyright: ignore[reportPrivateUsage]


def test_a_letter_is_sent_again_as_it_was_with_what_was_changed() -> None:
    given = {"model": "m", "sorce": "***"}
    assert body(given, "sorce=", "source=hf://a/b", "retain=true") == {
        "model": "m",
        "source": "hf://a/b",
        "retain": True,
    }
    assert body({"id": "mine", "model": "m"})["id"] == "mine-7"
    assert body({"id": "mine", "model": "m"}, "id=other")["id"] == "other"


@pytest.mark.parametrize(
    ("given", "changes", "told"),
    [
        (None, (), "no JSON object"),
        ({"model": "m", "token_ref": "***"}, (), "--set token_ref="),
        ({"model": "m"}, ("nonsense",), "FIELD=VALUE"),
        ({"model": "m"}, ("a=[",), "no YAML"),
    ],
)
def test_what_cannot_be_sent_again_says_what_to_do(given, changes, told: str) -> None:
    with pytest.raises((CliError, PunaError)) as error:
        body(given, *changes)
    assert told in str(error.value)
