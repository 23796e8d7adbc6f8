"""Node agents that report by HTTP, and what Prometheus is told of all nodes."""

from __future__ import annotations

import pytest

DEVICE = {"device": "cuda:0", "name": "A10", "memory_total_bytes": 24, "memory_free_bytes": 20}


async def test_an_agent_registers_reports_and_is_listed(gateway) -> None:
    about = {"node": "agent-1", "labels": {"rack": "4"}, "devices": [DEVICE], "http": "http://10.0.0.7:9000"}
    answer = await gateway.http.post("/v1/nodes/register", json=about)
    assert (answer.status_code, answer.json()) == (200, {"node": "agent-1", "heartbeat_interval_s": 2.0, "ttl_s": 6.0})
    await gateway.until_nodes("agent-1")
    node = (await gateway.http.get("/v1/nodes/agent-1")).json()
    assert (node["state"], node["labels"]) == ("reported", {"rack": "4", "source": "http"})
    assert node["devices"][0]["backend"] == "cuda"
    metrics = {"utilization_percent": 55.0}
    report = {"node": "agent-1", "devices": [DEVICE | {"metrics": metrics}], "pressure": {"active": 2}}
    assert (await gateway.http.post("/v1/nodes/heartbeat", json=report)).status_code == 200
    await gateway.until(lambda node: node["pressure"]["active"] == 2, "/v1/nodes/agent-1")
    node = (await gateway.http.get("/v1/nodes/agent-1")).json()
    assert node["devices"][0]["metrics"]["utilization_percent"] == 55.0
    assert node["labels"]["rack"] == "4"


async def test_a_report_of_a_node_that_is_not_registered_says_what_to_do(gateway) -> None:
    answer = await gateway.http.post("/v1/nodes/heartbeat", json={"node": "stranger"})
    assert answer.status_code == 404
    assert "/v1/nodes/register" in answer.json()["error"]["message"]


async def test_the_name_of_a_live_worker_is_not_given_away(gateway, worker) -> None:
    for path in ("/v1/nodes/register", "/v1/nodes/heartbeat"):
        answer = await gateway.http.post(path, json={"node": "n1"})
        assert answer.status_code == 403
        assert "reports by NATS" in answer.json()["error"]["message"]
    assert (await gateway.http.get("/v1/nodes/n1")).json()["labels"] == {}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "node"),
        ({"node": "../x"}, None),
        ({"node": "a", "engines": []}, "engines"),
        ({"node": "a", "devices": [{"device": "cuda:0", "memory_total_bytes": -1}]}, "devices.0.memory_total_bytes"),
        ({"node": "a", "labels": {"x": 1}}, "labels.x"),
        ({"node": "a", "http": "ftp://x"}, "http"),
    ],
)
async def test_what_an_agent_says_is_checked(gateway, body, param) -> None:
    answer = await gateway.http.post("/v1/nodes/register", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_prometheus_is_told_where_the_workers_metrics_are(gateway, start_worker) -> None:
    await start_worker(node="n1", about={"http": "http://10.0.0.1:8081", "region": "eu"})
    await start_worker(node="n2", about={"http": "http://0.0.0.0:9000"})
    await start_worker(node="n3")
    await gateway.until_nodes("n1", "n2", "n3")
    answer = await gateway.http.get("/sd/prometheus")
    assert answer.headers["content-type"] == "application/json"
    first, second = answer.json()
    assert (first["targets"], first["labels"]["node"], first["labels"]["region"]) == (["10.0.0.1:8081"], "n1", "eu")
    assert second["targets"] == ["n2:9000"]
    assert all(isinstance(value, str) for value in first["labels"].values())


async def test_the_queue_page_shows_what_has_left_the_lines(gateway, start_worker) -> None:
    await start_worker(state="starting", about={"pressure": {"active": 3, "waiting": 2}})
    await gateway.until_nodes("n1")
    page = (await gateway.http.get("/v1/queue")).json()
    assert (page["active"], page["held"]) == (3, 2)
    assert {row["engines_starting"] for row in page["data"]} == {1}
