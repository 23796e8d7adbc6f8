"""What can go wrong on the bus, as part of the tree in `schemas.errors`. None of nats-py's leaves this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from schemas.errors import BusUnavailable, LineFull, PunaError

_STORE_FAILED: Final = 10077
_STREAM_NOT_FOUND: Final = 10059
_WRONG_LAST_SEQUENCE: Final = (10071, 10164)


class BusSlow(BusUnavailable):
    """The server takes our bytes slower than we make them, and the buffer for what waits is full."""

    code = "bus_slow"


class BusDenied(BusUnavailable):
    """The server does not let this user publish or subscribe there; trying again changes nothing."""

    code, retryable = "bus_denied", False


class BusRefused(BusUnavailable):
    """The server, or our own settings, refuse the connection: credentials or TLS. Waiting alone mends nothing."""

    code, retryable = "bus_refused", False


class NoResponders(BusUnavailable):
    """Nobody listens on the subject of a request."""

    code = "no_responders"


class NoStream(BusUnavailable):
    """No stream takes in the subject, or the stream named does not exist (yet)."""

    code = "no_stream"


class JetStreamError(BusUnavailable):
    """JetStream's own answer of no. `status` is like HTTP's, `err_code` is one of nats-server's list."""

    code = "jetstream_error"

    def __init__(self, status: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream says {err_code}: {description}")
        self.status = status
        self.err_code = err_code
        self.description = description


class WrongRevision(JetStreamError):
    """A compare-and-set lost: somebody wrote since."""

    code = "wrong_revision"


def jetstream_error(error: Mapping[str, Any]) -> JetStreamError:
    """The `error` of an answer of the JetStream API as an exception."""
    kind = WrongRevision if error.get("err_code") in _WRONG_LAST_SEQUENCE else JetStreamError
    return kind(int(error.get("code", 500)), int(error.get("err_code", 0)), str(error.get("description", "no reason")))


def publish_error(error: Mapping[str, Any], subject: str) -> PunaError:
    """The `error` of a publish's ack as an exception.

    10077 is any failure to store; only those that name a maximum mean that the line is full.
    """
    err_code, description = error.get("err_code"), str(error.get("description", ""))
    if err_code == _STORE_FAILED and description.startswith("maximum"):
        return LineFull(f"the line is full ({description}); try again later")
    if err_code == _STREAM_NOT_FOUND:
        return NoStream(f"no stream takes {subject}")
    return jetstream_error(error)
