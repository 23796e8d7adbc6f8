"""Log lines on stderr, one an event: as JSON, or for people. They hold names and numbers, never what users wrote."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Final, Literal

import orjson

Format = Literal["json", "pretty", "auto"]
_OWN: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller added to the record; nothing that is `None`."""
    return {key: value for key, value in vars(record).items() if key not in _OWN and value is not None}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{clock}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= facts_of(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class Pretty(logging.Formatter):
    """Time, level, event, then `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        facts = facts_of(record)
        event = facts.pop("event", record.getMessage())
        told = " ".join(f"{key}={value}" for key, value in facts.items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {event} {told}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(level: str, form: Format) -> None:
    """Send all logs of this process to stderr. `auto`: for people on a terminal, else JSON."""
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Pretty() if pretty else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
