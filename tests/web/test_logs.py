"""What a log line looks like."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from web import logs


def record(*, failed: bool = False, **facts: Any) -> logging.LogRecord:
    error = None
    if failed:
        try:
            raise ValueError("boom")
        except ValueError:
            error = sys.exc_info()
    made = logging.LogRecord("gateway.routes", logging.INFO, __file__, 1, "listening", (), error)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    vars(made).update(facts)
    return made


def test_json_is_one_object_a_line_with_the_facts_beside_the_event() -> None:
    line = logs.JsonLines().format(record(event="listening", port=8080, node=None))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "gateway.routes",
        "event": "listening",
        "port": 8080,
    }


def test_json_writes_what_json_does_not_know_as_text() -> None:
    line = logs.JsonLines().format(record(kinds={1: ValueError}))
    assert json.loads(line)["kinds"] == {"1": "<class 'ValueError'>"}


def test_an_exception_stays_on_its_one_line_of_json() -> None:
    line = logs.JsonLines().format(record(failed=True))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: boom")


def test_pretty_is_for_people() -> None:
    line = logs.Pretty().format(record(event="listening", host="::1", port=8080))
    assert line[8:] == " info    listening host=::1 port=8080"
    assert logs.Pretty().format(record(failed=True)).endswith("ValueError: boom")


@pytest.mark.parametrize(
    ("form", "terminal", "kind"),
    [
        ("json", True, logs.JsonLines),
        ("pretty", False, logs.Pretty),
        ("auto", True, logs.Pretty),
        ("auto", False, logs.JsonLines),
    ],
)
def test_auto_is_pretty_on_a_terminal_only(
    form: logs.Format, terminal: bool, kind: type[logging.Formatter], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    try:
        logs.set_up("warning", form)
        (handler,) = root.handlers
        assert (type(handler.formatter), root.level) == (kind, logging.WARNING)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
