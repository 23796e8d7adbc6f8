"""Bounds for the Hub's library, which has few of its own (facts of 2.4).

Its requests have no time limit, and retry inside with waits of theirs; an answer of any length is read into memory; a
link to the next page may lead to another origin, and the token would go along.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from worker.sources import BadListing, Throttled, Unreachable, origin_of
from worker.transfer.backoff import retry_after_s

if TYPE_CHECKING:
    import httpx2

ANSWER_LIMIT_BYTES: Final = 64 << 20
SILENCE_LIMIT_S: Final = 15.0


@dataclass(slots=True)
class Look:
    """What is asked, and until when. `ended` may be set from another thread: then it stops at the next byte."""

    endpoint: str
    repository: str
    revision: str | None
    token: str | None = field(repr=False)
    deadline_s: float
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def left_s(self) -> float:
        """Until the deadline. Raises `Unreachable` when it is past."""
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0 or self.ended.is_set():
            raise Unreachable(f"the Hub took too long to tell of {self.repository}")
        return left_s


_now: ContextVar[Look | None] = ContextVar("_now", default=None)
_installing = threading.Lock()
_installed = threading.Event()


@contextmanager
def guarding(look: Look) -> Generator[None]:
    """What the library asks in here, in this thread, is held to the look's bounds."""
    _install()
    mark = _now.set(look)
    try:
        yield
    finally:
        _now.reset(mark)


def _install() -> None:
    """Have the library use a client with our guards, once for the process."""
    from huggingface_hub import set_client_factory

    with _installing:
        if not _installed.is_set():
            set_client_factory(_client)
            _installed.set()


def _client() -> httpx2.Client:
    import httpx2

    hooks: dict[str, list[Callable[..., Any]]] = {"request": [_before], "response": [_after]}
    return httpx2.Client(follow_redirects=True, timeout=SILENCE_LIMIT_S, event_hooks=hooks)


def _before(request: httpx2.Request) -> None:
    """Each request, redirected ones and further pages too."""
    look = _now.get()
    if look is None:
        return
    limit_s = min(SILENCE_LIMIT_S, look.left_s)
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), limit_s)
    request.headers["Accept-Encoding"] = "identity"
    if origin_of(str(request.url)) != origin_of(look.endpoint):
        request.headers.pop("Authorization", None)


def _after(response: httpx2.Response) -> None:
    look = _now.get()
    if look is None:
        return
    if response.status_code == 429 or response.status_code >= 500:
        _refused(look, response)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadListing(f"{look.repository}: the Hub packs its answers though it was asked not to")
    response.stream = _bounded(response.stream, look)


def _bounded(stream: Any, look: Look) -> Any:
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            left_bytes = ANSWER_LIMIT_BYTES
            for block in stream:
                left_bytes -= len(block)
                if left_bytes < 0:
                    raise BadListing(f"{look.repository}: the Hub's answer is over {ANSWER_LIMIT_BYTES >> 20} MiB")
                _ = look.left_s
                yield block

        def close(self) -> None:
            stream.close()

    return Bounded()


def _refused(look: Look, response: httpx2.Response) -> NoReturn:
    """Raised inside the library, so that it does not retry by itself."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = retry_after_s(response.headers.get("Retry-After"))
    if response.status_code != 429:
        reason = f"the Hub fails with status {response.status_code} for {look.repository}"
        raise Unreachable(reason, retry_after_s=asked)
    limits = parse_ratelimit_headers(response.headers)
    if asked is None and limits is not None:
        asked = float(limits.reset_in_seconds)
    raise Throttled(f"the Hub answers that {look.repository} was asked for too often", retry_after_s=asked)
