"""Rows and views, from heartbeats alone."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from gateway.cli.children import Child
from gateway.cli.tables import NODE_WIDE, engine_rows, model_rows, node_rows
from gateway.cli.upview import Facts, all_ready, banner, changes, facts_json, fleet_rows
from gateway.fleet import Roster
from gateway.models import listing
from gateway.shelf import Shelf
from gateway.view import Moment
from schemas.node import Device, Engine, Heartbeat, Pressure

NOW = 1_000_000.0


def engine(model="m", state="ready", **more) -> Engine:
    return Engine(engine="e1", model=model, devices=("cpu:0",), state=state, slots_total=4, since=NOW - 90, **more)


def beat(node="worker-1", *engines: Engine, **more) -> Heartbeat:
    about = {"boot_id": "b", "sequence": 1, "version": "0", "started_at": NOW - 7200, "http": "http://127.0.0.1:1"}
    return Heartbeat(node=node, engines=engines, **(about | more))


def worker(name="worker-1", pid=7) -> Child:
    return Child(name, [], os.environ, Path("/dev/null"), pid=pid)


def test_an_engine_row_says_state_slots_and_age() -> None:
    [row] = engine_rows([beat("n", engine(slots_busy=3))], NOW)
    assert (row["node"], row["device"], row["state"], row["slots"], row["since"]) == (
        "n",
        "cpu:0",
        "ready",
        "3/4",
        "1m",
    )


def test_a_state_that_is_not_fine_says_why_how_far_and_when_next() -> None:
    crashed = engine(state="crashed", reason="out of memory", next_retry_at=NOW + 5)
    starting = engine(state="starting", progress=0.4)
    states = [row["state"] for row in engine_rows([beat("n", crashed, starting)], NOW)]
    assert states == ["crashed: out of memory, next try in 5s", "starting: 40%"]


def test_a_node_without_an_engine_is_not_passed_over() -> None:
    assert engine_rows([beat("n")], NOW)[0]["state"] == "no engine"


def test_models_are_summed_over_nodes() -> None:
    beats = {one.node: one for one in (beat("a", engine(slots_busy=1)), beat("b", engine(), engine(state="crashed")))}
    values = {node: SimpleNamespace(value=one.model_dump_json().encode(), revision=1) for node, one in beats.items()}
    [row] = model_rows(listing(Moment(Roster().take(values, 0.0), Shelf(), 0.0))["data"])
    assert (row["nodes"], row["slots"], row["state"]) == ("a, b", "1/8", "ready")


def test_nodes_show_their_devices() -> None:
    device = Device(device="cpu:0", backend="cpu", name="x86", memory_total_bytes=8, memory_free_bytes=4_000_000_000)
    [row] = node_rows([beat("a", engine(), devices=(device,))], NOW)
    assert (row["devices"], row["memory free"], row["since"]) == ("cpu:0 (x86)", "4.0 GB", "2h")


def test_wide_rows_of_nodes_tell_of_host_engine_and_speed() -> None:
    told = {"host": "gpu-box", "engine_program": "llama-server", "engine_build": "b6000"}
    one = beat("a", engine()).model_copy(update={**told, "pressure": Pressure(tokens_per_s=41.25)})
    [row] = node_rows([one], NOW)
    assert (row["host"], row["engine"], row["tokens/s"]) == ("gpu-box", "llama-server b6000", "41.2")
    assert {"host", "engine", "tokens/s"} <= set(NODE_WIDE)
    [bare] = node_rows([beat("b")], NOW)
    assert (bare["host"], bare["engine"], bare["tokens/s"]) == ("-", "-", "0.0")


def test_a_dead_worker_is_gone_though_its_last_heartbeat_is_still_there() -> None:
    dead = worker(pid=None)
    dead.ended = "was killed by SIGKILL"
    assert fleet_rows([beat("worker-1", engine())], [dead], {"worker-1"}, NOW) == [
        {"node": "worker-1", "state": "gone: was killed by SIGKILL"}
    ]


def test_the_heartbeat_of_an_earlier_life_is_not_taken_for_the_new_one() -> None:
    old = beat("worker-1", engine(), pid=6)
    assert fleet_rows([old], [worker()], {"worker-1"}, NOW)[0]["state"] == "silent: no heartbeat"
    assert not all_ready([old], [worker()], "m")
    assert all_ready([beat("worker-1", engine(), pid=7)], [worker()], "m")


def test_nodes_of_others_are_shown_beside_ours() -> None:
    rows = fleet_rows([beat("worker-1", engine()), beat("gpu-box", engine())], [worker()], set(), NOW)
    assert [row["node"] for row in rows] == ["gpu-box", "worker-1"]


def test_only_news_is_told_where_there_is_no_terminal() -> None:
    rows = engine_rows([beat("n", engine())], NOW)
    told, lines = changes({}, rows)
    assert lines == ["n m: ready"]
    assert changes(told, engine_rows([beat("n", engine(slots_busy=2))], NOW + 60))[1] == []
    assert changes(told, [])[1] == ["n m: gone"]


def test_the_line_for_programs_has_the_agreed_shape() -> None:
    facts = Facts(
        "m", "nats://u:p@h:1", worker("nats-server", 1), {"http://h:2": worker("gateway-1", 2)}, [worker()], Path()
    )
    assert facts_json(facts, [beat("worker-1", engine())]) == {
        "gateway": "http://h:2",
        "nats": "nats://u:p@h:1",
        "model": "m",
        "nats_server": {"pid": 1},
        "gateways": [{"pid": 2, "url": "http://h:2"}],
        "workers": [{"node": "worker-1", "pid": 7, "http": "http://127.0.0.1:1"}],
    }
    assert "p@h" not in banner(facts)
