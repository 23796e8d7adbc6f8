"""Exit codes of `puna`, and how an error becomes one."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
NOT_ALLOWED: Final = 4
TIMEOUT: Final = 5
SOME_FAILED: Final = 6
MISSING: Final = 69
INTERRUPTED: Final = 130

MEANINGS: Final[dict[int, str]] = {
    OK: "ok",
    FAILURE: "failure",
    USAGE: "wrong usage",
    NOT_FOUND: "not found",
    NOT_ALLOWED: "not allowed",
    TIMEOUT: "timeout",
    SOME_FAILED: "some nodes failed",
    MISSING: "NATS or engine missing",
    INTERRUPTED: "interrupted",
}
_BY_STATUS: Final = {400: USAGE, 401: NOT_ALLOWED, 403: NOT_ALLOWED, 404: NOT_FOUND, 408: TIMEOUT, 504: TIMEOUT}


class CliError(Exception):
    """What a person is told, with the remedy, and the exit code that a script sees."""

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def code_of_status(http_status: int) -> int:
    """The exit code for an HTTP error status."""
    return _BY_STATUS.get(http_status, FAILURE)


def code_of(error: Exception) -> int:
    """The exit code for an error of ours."""
    from bus.errors import BusDenied, NoResponders, NoStream
    from schemas.errors import BusUnavailable, PunaError

    if isinstance(error, CliError):
        return error.code
    if isinstance(error, BusDenied):
        return NOT_ALLOWED
    if isinstance(error, BusUnavailable) and not isinstance(error, NoResponders | NoStream):
        return MISSING
    return code_of_status(error.http_status) if isinstance(error, PunaError) else FAILURE
