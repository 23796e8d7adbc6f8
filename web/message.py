"""What a request is, and the bytes of a response's head. Pure but for the clock of the `date` header."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

import httptools

from schemas.errors import PunaError

Header = tuple[str, str]

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING: Final = frozenset(("content-length", "transfer-encoding", "connection", "date", "content-type"))
_QUERY_FIELDS: Final = 256
CHUNKED: Final = b"transfer-encoding: chunked\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
KEEP_ALIVE_10: Final = b"connection: keep-alive\r\n"
CLOSE: Final = b"connection: close\r\n"


class Request(NamedTuple):
    """One whole request."""

    method: str
    path: str
    """Percent-decoded, without the query."""
    query: dict[str, str]
    """Percent-decoded; of a name given twice the last stands."""
    headers: Mapping[str, str]
    """Names in lower case; a name given twice has its values joined by commas."""
    body: bytes
    peer: str
    """The client's address, without the port."""
    target: str = ""
    """Path and query as they were sent."""
    http10: bool = False
    keep_alive: bool = True
    """The client is willing to send another request on this connection."""


class Refusal(NamedTuple):
    """What is answered instead of serving a request, and what is known of that request's headers."""

    error: PunaError
    asked: Mapping[str, str]


class BadTarget(ValueError):
    """A request target that is no path and no URL."""


def split_target(target: bytes) -> tuple[str, dict[str, str]]:
    """Path and query of a request target. Raises `BadTarget`."""
    if not target.startswith(b"/") and target != b"*":
        target = _origin_form(target)
    path, _, query = target.partition(b"?")
    decoded = unquote(path.decode("latin-1")) if b"%" in path else path.decode("latin-1")
    return decoded, _query(query) if query else {}


def _origin_form(target: bytes) -> bytes:
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError as error:
        raise BadTarget("the request target is neither a path nor a URL") from error
    if not url.schema:
        raise BadTarget("the request target is neither a path nor a URL")
    return (url.path or b"/") + (b"?" + url.query if url.query else b"")


def _query(query: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_QUERY_FIELDS))
    except ValueError as error:
        raise BadTarget(f"the query has more than {_QUERY_FIELDS} fields") from error


@lru_cache(maxsize=256)
def _opening(status: int, content_type: str) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    line = f"HTTP/1.1 {status} {phrase}\r\n"
    if content_type:
        line += f"content-type: {_clean(content_type)}\r\n"
    return line.encode("latin-1", "replace")


def render_head(status: int, content_type: str, headers: Iterable[Header], framing: bytes) -> bytes:
    """The head of a response, with the blank line. `framing` holds whole header lines of the server's own.

    Control characters in values become spaces. Raises `ValueError` for a name that is none, or that is the server's.
    """
    opening = _opening(status, content_type)
    extra = render_headers(headers) if headers else b""
    return b"%b%b%b%b\r\n" % (opening, date_line(), extra, framing)


def render_refusal(status: int, body: bytes, headers: Iterable[Header]) -> bytes:
    """A whole response, the last of its connection."""
    return render_head(status, "application/json", headers, b"content-length: %d\r\n" % len(body) + CLOSE) + body


def render_headers(headers: Iterable[Header]) -> bytes:
    """Header lines. Raises `ValueError` for a name that is none, or that is the server's to write."""
    return b"".join([_line(name, value) for name, value in headers])


def _line(name: str, value: str) -> bytes:
    return f"{_checked(name)}: {_clean(value)}\r\n".encode("latin-1", "replace")


@lru_cache(maxsize=256)
def _checked(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError("a header name holds a character that none may hold")
    if name.lower() in _FRAMING:
        raise ValueError(f"the header {name} is not the caller's to set")
    return name


def _clean(value: str) -> str:
    return value if value.isprintable() else _CONTROL.sub(" ", value)


_date: tuple[int, bytes] = (0, b"")


def date_line() -> bytes:
    """The `date` header, made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"date: {formatdate(now, usegmt=True)}\r\n".encode("ascii"))
    return _date[1]
