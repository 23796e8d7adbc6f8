"""Headers that every answer of ours carries, and those that say when to come again. Pure but for fresh ids."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from itertools import count
from typing import Final

from schemas.errors import InvalidName, PunaError
from schemas.subjects import check_request_id
from web.message import Header

REQUEST_ID: Final = "x-request-id"
_PROCESS: Final = secrets.token_hex(6)
_NUMBERS: Final = count(1)


def fresh_id() -> str:
    """An id that no other request has, of this process or another: what is random is drawn once, so that no request
    waits for the system's dice."""
    return f"{_PROCESS}{next(_NUMBERS):012x}"


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's own `x-request-id` if it may be used, else a new one."""
    given = headers.get(REQUEST_ID)
    if not given:
        return fresh_id()
    try:
        return check_request_id(given)
    except InvalidName:
        return fresh_id()


def identified(headers: Mapping[str, str]) -> list[Header]:
    """The headers of an answer to a request with `headers`: its id."""
    return [(REQUEST_ID, request_id_of(headers))]


def retry_headers(retryable: bool, status: int, retry_after_s: float | None) -> list[Header]:
    """What OpenAI's clients read before they repeat a request, or give it up."""
    if not retryable:
        return [("x-should-retry", "false")] if status >= 500 or status == 429 else []
    after_s = max(retry_after_s if retry_after_s is not None else 1.0, 0.001)
    return [
        ("retry-after", str(math.ceil(after_s))),
        ("retry-after-ms", str(math.ceil(after_s * 1000))),
        ("x-should-retry", "true"),
    ]


def remedy_headers(error: PunaError) -> list[Header]:
    """What an error's answer carries besides its body: when to come again, and how to say who calls."""
    challenge = [("www-authenticate", "Bearer")] if error.http_status == 401 else []
    return retry_headers(error.retryable, error.http_status, error.retry_after_s) + challenge
