"""The gateway's HTTP, as much as a command needs: JSON answers and streams of events."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

from gateway.cli.exits import FAILURE, USAGE, CliError, code_of_status

_ANSWER_S: Final = 10.0
_STREAM_SILENCE_S: Final = 60.0
"""The gateway sends a comment at least every 15 s to a stream that waits."""
_DONE: Final = b"[DONE]"


class GatewayHttp:
    """One gateway. Raises `CliError` with what to do."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CliError(f"--gateway {url!r}: give http://HOST:PORT", USAGE)
        self.url = url
        self._parts = parts
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        answer = self._ask("GET", path, None, _ANSWER_S)
        return json.loads(answer.read())

    def status(self, path: str) -> int:
        """The HTTP status of `path`; 0 if the gateway cannot be reached."""
        try:
            answer = self._open("GET", path, None, _ANSWER_S)
        except (OSError, http.client.HTTPException):
            return 0
        answer.read()
        return answer.status

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer. Closing the iterator closes the connection, which ends the work."""
        answer = self._ask("POST", path, json.dumps({**body, "stream": True}).encode(), _STREAM_SILENCE_S)
        try:
            yield from self._events(answer)
        finally:
            answer.close()

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        try:
            for line in answer:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == _DONE:
                    return
                yield _event(data)
        except (OSError, http.client.HTTPException) as error:
            raise CliError(f"the gateway at {self.url} ended the answer early: {error}") from error
        raise CliError(f"the gateway at {self.url} ended the answer early")

    def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> http.client.HTTPResponse:
        try:
            answer = self._open(method, path, body, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise CliError(
                f"no gateway answers at {self.url} ({error}); start one with `puna up`, or name it with --gateway URL"
            ) from error
        if answer.status >= 400:
            raise _error(answer.status, answer.read())
        return answer

    def _open(self, method: str, path: str, body: bytes | None, timeout_s: float) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=timeout_s)
        headers = {**self._headers, "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
        return connection.getresponse()


def _event(data: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise CliError(_message(event, "the answer failed"), FAILURE)
    return event


def _error(status: int, raw: bytes) -> CliError:
    try:
        body: object = json.loads(raw)
    except ValueError:
        body = {}
    return CliError(_message(body, f"the gateway answered HTTP {status}"), code_of_status(status))


def _message(body: object, default: str) -> str:
    error = cast(dict[str, object], body).get("error") if isinstance(body, dict) else None
    text = cast(dict[str, object], error).get("message") if isinstance(error, dict) else None
    return text if isinstance(text, str) and text else default
