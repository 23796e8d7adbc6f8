"""What can be wrong with a request before anybody looks at what it asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import httptools

from schemas.errors import BodyTooLarge, HeadersTooLarge, InvalidRequest, PunaError
from web.limits import Limits


def head_fault(method: bytes, version: str, headers: Mapping[str, str], limits: Limits) -> PunaError | None:
    """Why a request with this head is refused, or None."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if version not in ("1.1", "1.0"):
        return InvalidRequest(f"HTTP/{version} is not spoken here; use HTTP/1.1")
    if version == "1.1" and "host" not in headers:
        return InvalidRequest("the host header is missing")
    # Two ways to tell the body's end are one too many: a proxy before us may believe the other (request smuggling).
    if coding is not None and (coding.lower() != "chunked" or length is not None or version == "1.0"):
        return InvalidRequest("the transfer-encoding is not chunked, or stands beside a content-length")
    if length is not None and int(length) > limits.body_bytes:
        return body_too_large(limits)
    if method == b"CONNECT":
        return InvalidRequest("this is no proxy")
    return None


def headers_too_large(limits: Limits) -> PunaError:
    """Too many header bytes or lines."""
    return HeadersTooLarge(f"the headers are over {limits.header_bytes} bytes or {limits.headers} lines")


def body_too_large(limits: Limits) -> PunaError:
    """Too many body bytes."""
    return BodyTooLarge(f"the body is over {limits.body_bytes} bytes")


def malformed(error: httptools.HttpParserError) -> PunaError:
    """Not HTTP, as llhttp says it."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return InvalidRequest("the request method is unknown")
    return InvalidRequest(f"the request is not HTTP/1.1: {error}")
