"""Messages as they go over the wire: what is received, and how what is sent is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from schemas.errors import BodyTooLarge, InvalidName, PunaError
from schemas.subjects import H_SERVICE_ERROR, H_SERVICE_ERROR_CODE

STATUS: Final = "Status"
DESCRIPTION: Final = "Description"
CONTROL_LINE_BYTES: Final = 4096
"""nats-server's `max_control_line`; a longer one ends the connection."""

_HEADER_KEY: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LINE_BREAKS: Final = str.maketrans({"\r": " ", "\n": " "})
_VERSION: Final = b"NATS/1.0"
_ERROR_TEXT_CHARS: Final = 200
_H_RETRY_AFTER: Final = "Retry-After"


class Message(NamedTuple):
    """One message. The server's own status line is found in `headers` under `Status` and `Description`."""

    subject: str
    payload: bytes
    reply: str = ""
    headers: Mapping[str, str] | None = None

    @property
    def status(self) -> str:
        """`503` for no responders, `404`, `408`, `409`, `100` of pulls; empty for an ordinary message."""
        return self.headers.get(STATUS, "") if self.headers else ""


def parse_headers(raw: bytes) -> dict[str, str]:
    """The headers of an HMSG. Lines that are no header are left out; bytes that are no UTF-8 become U+FFFD."""
    first, *lines = str(raw, "utf-8", "replace").split("\r\n")
    found: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            found[key.strip()] = value.strip()
    if len(first) > len(_VERSION):
        status, _, description = first[len(_VERSION) :].strip().partition(" ")
        found[STATUS] = status
        if description:
            found[DESCRIPTION] = description.strip()
    return found


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """The header block. A value's line breaks become spaces. Raises `InvalidName` for a key that is no token."""
    lines = ["NATS/1.0"]
    for key, value in headers.items():
        if not _HEADER_KEY.fullmatch(key):
            raise InvalidName(f"{key[:40]!r} cannot be a header's name")
        if not value.isprintable():
            value = value.translate(_LINE_BREAKS)
        lines.append(f"{key}: {value}")
    return "\r\n".join([*lines, "\r\n"]).encode("utf-8", "replace")


def service_headers(text: str, status: int) -> dict[str, str]:
    """The two headers by which NATS services say that an answer is an error."""
    return {H_SERVICE_ERROR: text[:_ERROR_TEXT_CHARS], H_SERVICE_ERROR_CODE: str(status)}


def error_headers(error: PunaError) -> dict[str, str]:
    """The headers of an answer that is `error`; they also say when to come again."""
    headers = service_headers(error.message, error.http_status)
    if error.retryable and error.retry_after_s is not None:
        headers[_H_RETRY_AFTER] = str(math.ceil(error.retry_after_s))
    return headers


def publish_command(
    subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None, max_payload: int
) -> bytes:
    """PUB or HPUB, checked: a bad one would end the connection for everybody on it.

    Raises `BodyTooLarge` when headers and payload are over `max_payload` bytes, `InvalidName` for a subject.
    """
    size = len(payload)
    if headers is None:
        line = f"PUB {subject} {reply} {size}\r\n" if reply else f"PUB {subject} {size}\r\n"
        block = b""
    else:
        block = encode_headers(headers)
        size += len(block)
        line = f"HPUB {subject} {reply} {len(block)} {size}\r\n"
    if size > max_payload:
        raise BodyTooLarge(f"a message of {size} bytes; the NATS server takes {max_payload} (max_payload)")
    # isprintable lets no line break or tab through: subjects of strangers (reply subjects) end up here
    if not subject or not subject.isprintable() or " " in subject or (reply and not _is_token(reply)):
        raise InvalidName(f"subject {subject[:80]!r} with reply {reply[:80]!r} cannot be published to")
    start = line.encode()
    if len(start) > CONTROL_LINE_BYTES:
        raise InvalidName(f"subject {subject[:80]!r}… is too long")
    return b"%b%b%b\r\n" % (start, block, payload)


def _is_token(reply: str) -> bool:
    return reply.isprintable() and " " not in reply


def check_subscription(subject: str, queue: str | None) -> None:
    """Raises `InvalidName` for a subject or queue group that the server would refuse."""
    tokens = subject.split(".")
    misplaced = any(not token or (len(token) > 1 and ("*" in token or ">" in token)) for token in tokens)
    if misplaced or ">" in tokens[:-1] or not _is_token(subject) or (queue and not _is_token(queue)):
        raise InvalidName(f"subject {subject[:80]!r} (queue {queue!r}) cannot be subscribed to")
