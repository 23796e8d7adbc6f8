"""Every error that crosses a process boundary, on one page.

A class says whose fault it is (`http_status`, `type`), what a program may match on (`code`) and whether the same
request can succeed elsewhere or later (`retryable`). The text is for a person: what is wrong, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import orjson


class PunaError(Exception):
    """Root of the tree. `message` is shown to the caller; it never holds a prompt, a completion or a secret."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The error in OpenAI's shape, as JSON bytes."""
        return error_body(self.message, type_=self.type, code=self.code, param=self.param)


class InvalidRequest(PunaError):
    """The request itself is wrong; `param` names the field."""

    code, http_status, type = "invalid_request", 400, "invalid_request_error"


class InvalidJson(InvalidRequest):
    """The body is not a JSON object, or is nested too deep to be one that anybody meant."""

    code = "invalid_json"


class InvalidName(InvalidRequest):
    """A model, node or task id that cannot stand in a subject, a key or a path."""

    code = "invalid_name"


class UnknownField(InvalidRequest):
    """A field that the operation does not have."""

    code = "unknown_field"


class AuthenticationFailed(PunaError):
    """No key, or one that nobody was given."""

    code, http_status, type = "invalid_api_key", 401, "authentication_error"


class NotAllowed(PunaError):
    """The key is known and may not do this."""

    code, http_status, type = "not_allowed", 403, "permission_error"


class ModelNotFound(PunaError):
    """No node of the fleet holds or serves the model, and no record wants it."""

    code, http_status, type = "model_not_found", 404, "not_found_error"


class NotFound(PunaError):
    """No such page, node or task."""

    code, http_status, type = "not_found", 404, "not_found_error"


class MethodNotAllowed(PunaError):
    """The page exists and does not take this method."""

    code, http_status, type = "method_not_allowed", 405, "invalid_request_error"


class RequestTimeout(PunaError):
    """The client took too long to send its request."""

    code, http_status, type = "request_timeout", 408, "invalid_request_error"


class BodyTooLarge(PunaError):
    """The body, or what it becomes on the wire, is over a limit that the message names."""

    code, http_status, type = "body_too_large", 413, "invalid_request_error"


class HeadersTooLarge(PunaError):
    """The request line and headers are over the limit that the message names."""

    code, http_status, type = "headers_too_large", 431, "invalid_request_error"


class PoisonedRequest(PunaError):
    """This very request has ended engines twice; it is not tried a third time."""

    code, http_status, type = "request_kills_engine", 422, "invalid_request_error"


class LineFull(PunaError):
    """The model's line holds as many waiting requests as it may."""

    code, http_status, type, retryable = "queue_full", 429, "rate_limit_error", True


class RateLimited(PunaError):
    """The key is over its own limit."""

    code, http_status, type, retryable = "rate_limited", 429, "rate_limit_error", True


class EngineFailed(PunaError):
    """The engine failed in the middle of the work and nobody could take over."""

    code, http_status, retryable = "engine_failed", 502, True


class EngineDied(EngineFailed):
    """The engine's process ended, or was ended as frozen, while it worked on the request: the request is a suspect."""

    code = "engine_died"


class WorkerLost(PunaError):
    """The node that held the request went silent and nobody could take over."""

    code, http_status, retryable = "worker_lost", 502, True


class Unavailable(PunaError):
    """No node can serve this now; the message says why and what is being waited for."""

    code, http_status, retryable = "unavailable", 503, True


class ModelLoading(Unavailable):
    """The model is being loaded or switched to and took longer than the request may wait. `loading` stands beside
    `error` in the body: `state`, `reason`, `progress` (0 to 1) and `eta_s`, as far as they are known."""

    code = "model_loading"
    loading: Mapping[str, str | float | None] | None = None

    def body(self) -> bytes:
        """The error in OpenAI's shape, and what is being waited for beside it."""
        if self.loading is None:
            return super().body()
        return orjson.dumps({**orjson.loads(super().body()), "loading": self.loading})


class BusUnavailable(Unavailable):
    """NATS cannot be reached."""

    code = "bus_unavailable"


class DeadlineExceeded(PunaError):
    """The request's own deadline passed."""

    code, http_status, retryable = "deadline_exceeded", 504, True


class Cancelled(PunaError):
    """The requester left or asked to stop. Nobody reads this but logs and metrics."""

    code, http_status = "cancelled", 499


def error_body(message: str, *, type_: str, code: str | None, param: str | None = None) -> bytes:
    """An error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""
    return orjson.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}})


def _tree(root: type[PunaError]) -> dict[str, type[PunaError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


ERRORS_BY_CODE: dict[str, type[PunaError]] = _tree(PunaError)


def from_code(code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> PunaError:
    """The error that a peer named. A code from a newer peer becomes the root: a 500 with the peer's own message."""
    return ERRORS_BY_CODE.get(code, PunaError)(message, param=param, retry_after_s=retry_after_s)
