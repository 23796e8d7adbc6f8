"""Every page that docs/wire.md claims is there."""

from __future__ import annotations

import re
from pathlib import Path

WIRE = Path(__file__).parents[2] / "docs" / "wire.md"


def claimed() -> list[tuple[str, str]]:
    """Method and path of each line of the gateway's table, and of the table of operations."""
    text = WIRE.read_text(encoding="utf-8")
    table = text.split("Gateway, `127.0.0.1:8080`")[1].split("Worker, `127.0.0.1:8081`")[0]
    found: list[tuple[str, str]] = []
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        method = "GET"
        for method_said, path in re.findall(r"`(?:(GET|POST|DELETE) )?(/[^`]*)`", cell):
            method = method_said or method
            found.append((method, path))
    operations = text[text.index("| op | endpoint |") :].split("\n\n")[0]
    found += [("POST", path) for path in re.findall(r"`(/[^`]+)`", operations) if path != "/v1/audio/transcriptions"]
    return found


async def test_every_path_of_the_manual_is_answered(gateway, worker) -> None:
    pages = claimed()
    assert len(pages) > 25
    for method, path in pages:
        path = path.replace("{id}", "m").replace("{node}", "n1").replace("?model=ID", "?model=m")
        path = path.replace("NODE/ENGINE/PAGE", "n1/e1/slots")
        if path == "/models/sse":
            async with gateway.http.stream("GET", path) as answer:
                assert answer.status_code == 200
            continue
        body = {} if method == "POST" else None
        status = (await gateway.http.request(method, path, json=body)).status_code
        assert status not in (404, 405, 500), (method, path, status)
