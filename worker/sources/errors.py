"""What can go wrong on the way from a source to the disk, on one page.

| error         | retryable | whose turn it is                                             |
|---------------|-----------|--------------------------------------------------------------|
| `NotThere`    | no        | whoever named the source: no such repository, revision, file |
| `Gated`       | no        | whoever must accept the terms of a model at its source       |
| `Denied`      | no        | whoever keeps the credential: missing, wrong, not enough     |
| `Ambiguous`   | no        | whoever named the source: several files fit                  |
| `BadListing`  | no        | the source: names or sizes that cannot be right              |
| `Unsupported` | no        | whoever named the source: nothing here can read it           |
| `Corrupt`     | no        | the source: what it sent is not what it should be            |
| `NoSpace`     | yes       | the node: room may be made                                   |
| `DiskFailed`  | yes       | the node: its disk refused a read or write                   |
| `Throttled`   | yes       | nobody, `retry_after_s`                                      |
| `Unreachable` | yes       | nobody: no connection, a time-out, cut short, 5xx            |
| `Stalled`     | yes       | nobody: too slow for too long                                |
| `Changed`     | yes       | nobody: the file was replaced while it was read; look again  |

Some are the node's own (`of_node`): another node may have the credential, the file, the space or the device that this
one lacks, so a task that may be done anywhere goes on to the next. `NotThere` and `Unsupported` say so themselves where
it is so: a path of this disk, a scheme that only others have.

A message never holds a secret, a query string or a header.
"""

from __future__ import annotations

from typing import ClassVar


class SourceError(Exception):
    """Root of the tree. `retryable`: the same again, later, can succeed. `of_node`: another node may not meet it."""

    code: ClassVar[str] = "source_error"
    retryable: ClassVar[bool] = False
    of_node: bool = False

    def __init__(self, message: str, *, retry_after_s: float | None = None, of_node: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        if of_node is not None:
            self.of_node = of_node


class NotThere(SourceError):
    """No such repository, revision, bucket or file; or it is hidden from who asks."""

    code = "source_not_found"


class Gated(SourceError):
    """It is there, and its terms were not accepted by the owner of the token."""

    code = "source_gated"
    of_node = True


class Denied(SourceError):
    """The credential is missing, wrong or not enough."""

    code = "source_denied"
    of_node = True


class Ambiguous(SourceError):
    """Several files fit; the message names them and how to choose."""

    code = "source_ambiguous"


class BadListing(SourceError):
    """The source named files in a way that cannot be right or is not safe."""

    code = "source_listing_invalid"


class Unsupported(SourceError):
    """No source that is installed here reads this scheme, or a part of it is missing; the message says which."""

    code = "source_unsupported"


class Corrupt(SourceError):
    """Bytes that came twice with the wrong digest, or more or fewer than the file has."""

    code = "source_corrupt"


class NoSpace(SourceError):
    """The disk is full, or would be."""

    code, retryable = "no_space", True
    of_node = True


class DiskFailed(SourceError):
    """The disk refused a read or a write."""

    code, retryable = "disk_failed", True
    of_node = True


class Throttled(SourceError):
    """The source asks to be left alone; `retry_after_s` is set where it said for how long."""

    code, retryable = "source_throttled", True


class Unreachable(SourceError):
    """No connection, no answer in time, an answer cut short, or the source's own failure (5xx)."""

    code, retryable = "source_unreachable", True


class Stalled(Unreachable):
    """Bytes came too slowly for too long."""

    code = "source_stalled"


class Changed(SourceError):
    """The file is no longer the one that was listed; list it anew."""

    code, retryable = "source_changed", True
