"""The pages of one engine, through the gateway."""

from __future__ import annotations

import pytest

from gateway.upstream import PAGES
from worker.orders import PageOrder


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_of_an_engine_is_asked_of_its_node(gateway, worker, page: str) -> None:
    answer = await gateway.http.get(f"/upstream/n1/e1{page}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain" if page == "/metrics" else "application/json")
    assert worker.orders.get_nowait() == ("engine-get", {"engine": "e1", "path": page})


def test_a_node_gives_each_of_these_pages() -> None:
    assert [PageOrder(engine="e1", path=page).path for page in PAGES] == list(PAGES)


@pytest.mark.parametrize(
    "path",
    [
        "/upstream/",
        "/upstream/n1",
        "/upstream/n1/e1",
        "/upstream/n1/e1/",
        "/upstream/n1/e1/completion",
        "/upstream/n9/e1/props",
    ],
)
async def test_what_there_is_not_is_refused_and_no_node_asked(gateway, worker, path: str) -> None:
    refused = await gateway.http.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert worker.orders.empty()


async def test_nothing_is_sent_to_an_engine(gateway, worker) -> None:
    assert (await gateway.http.post("/upstream/n1/e1/props", json={})).status_code == 405
    assert worker.orders.empty()


async def test_the_pages_of_engines_want_a_key_where_keys_are_set(start_gateway) -> None:
    closed = await start_gateway(keys=("a:one",))
    assert (await closed.http.get("/upstream/n1/e1/metrics")).status_code == 401
