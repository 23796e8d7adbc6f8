"""The error tree: complete, and it survives the wire."""

import orjson
import pytest

from schemas.errors import ERRORS_BY_CODE, LineFull, PunaError, from_code

TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
}


@pytest.mark.parametrize("kind", ERRORS_BY_CODE.values(), ids=lambda kind: kind.code)
def test_every_error_has_a_status_a_type_and_a_text(kind: type[PunaError]) -> None:
    assert 400 <= kind.http_status < 600
    assert kind.type in TYPES
    assert kind.__doc__


def test_codes_are_unique() -> None:
    def count(root: type[PunaError]) -> int:
        own = [child for child in root.__subclasses__() if child.__module__ == root.__module__]
        return 1 + sum(count(child) for child in own)

    assert count(PunaError) == len(ERRORS_BY_CODE)


def test_an_error_survives_the_wire_and_a_newer_code_keeps_its_message() -> None:
    error = from_code("queue_full", "full", retry_after_s=2.0)
    assert isinstance(error, LineFull)
    assert error.retry_after_s == 2.0
    assert type(from_code("from_the_future", "text")) is PunaError


def test_the_body_has_openais_shape() -> None:
    assert orjson.loads(LineFull("full", param="model").body()) == {
        "error": {"message": "full", "type": "rate_limit_error", "param": "model", "code": "queue_full"}
    }
