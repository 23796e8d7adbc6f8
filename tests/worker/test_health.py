"""Probes say what is wrong and what to do about it, and never hang themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest

from schemas.errors import BusUnavailable
from schemas.node import Engine, Heartbeat
from worker.health import FREE_LEAST_BYTES, LAG_LIMIT_S, LATE_S, STUCK_S, Health, Look, Vital, page
from worker.sources import DiskFailed


class Shelves:
    def __init__(self) -> None:
        self.trouble: str | None = None
        self.is_open = True
        self.free_bytes: int | None = 1 << 40
        self.error: Exception | None = None
        self.idle = 0.0

    def idle_s(self) -> float:
        return self.idle

    async def look(self) -> None:
        if self.error:
            raise self.error


class World:
    """Everything is well, until a test says otherwise."""

    def __init__(self, **options: Any) -> None:
        self.shelves = Shelves()
        self.engines: tuple[Engine, ...] = ()
        self.draining = self.gone = False
        self.lag_s = 0.0
        self.dead: str | None = None
        self.bus_error: Exception | None = None
        self.health = Health(
            Vital(
                shelves=self.shelves,
                beat=self.beat,
                connected=lambda: not self.gone,
                ask_bus=self.ask,
                lag_s=lambda: self.lag_s,
                dead=lambda: self.dead,
                **options,
            )
        )

    def beat(self) -> Heartbeat:
        return Heartbeat(
            node="n", boot_id="b", sequence=1, version="1", started_at=0, architecture="x", pid=1,
            engines=self.engines, draining=self.draining,
        )  # fmt: skip

    async def ask(self) -> None:
        if self.bus_error:
            raise self.bus_error

    async def looked(self) -> None:
        await self.health._folder.once()
        await self.health._bus.once()


def engine(state: str) -> Engine:
    told = {"engine": "engine-0", "model": "m", "state": state, "reason": "it broke", "devices": ["cpu:0"], "since": 0}
    return Engine.model_validate({**told, "slots_total": 1})


async def test_a_node_in_order_is_well_alive_and_ready() -> None:
    world = World()
    await world.looked()
    for checks in (world.health.live(), world.health.healthy(), world.health.ready()):
        status, body = page(checks, "bad")
        assert (status, body["status"], body["reasons"]) == (200, "ok", [])
        assert all(check["ok"] for check in body["checks"])


CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "late loop": ({"lag_s": LAG_LIMIT_S + 1}, "live", "event_loop", "late"),
    "dead part": ({"dead": "heartbeats"}, "live", "parts", "heartbeats has died"),
    "no server": ({"gone": True}, "ready", "nats", "not connected"),
    "no store of the server": ({"bus_error": BusUnavailable("no answer")}, "ready", "jetstream", "no answer"),
    "draining": ({"draining": True}, "ready", "draining", "draining"),
    "engines failed": ({"engines": (engine("crashed"),)}, "ready", "engines", "m is crashed: it broke"),
}


@pytest.mark.parametrize("case", CASES)
async def test_what_is_wrong_is_named_with_its_remedy(case: str) -> None:
    changes, probe, name, reason = CASES[case]
    world = World()
    for key, value in changes.items():
        setattr(world, key, value)
    await world.looked()
    status, body = page(getattr(world.health, probe)(), "bad")
    assert status == 503
    (found,) = [check for check in body["checks"] if not check["ok"]]
    assert found["name"] == name
    assert reason in found["reason"]
    assert body["reasons"] == [found["reason"]]
    assert len(found["remedy"]) > 10


async def test_a_folder_that_cannot_be_used_is_no_health_and_no_readiness_and_no_death() -> None:
    world = World()
    world.shelves.error = DiskFailed("the disk of the models refused: Permission denied")
    await world.looked()
    assert page(world.health.healthy(), "bad")[0] == page(world.health.ready(), "bad")[0] == 503
    assert page(world.health.live(), "bad")[0] == 200
    world.shelves.error = None
    await world.looked()
    assert page(world.health.healthy(), "bad")[0] == 200
    world.shelves.trouble = "it is not Puna's"
    assert "not Puna's" in page(world.health.healthy(), "bad")[1]["reasons"][0]


async def test_a_disk_that_is_full_or_not_open_yet_is_not_ready() -> None:
    world = World()
    await world.looked()
    world.shelves.free_bytes = FREE_LEAST_BYTES - 1
    assert "GiB free" in page(world.health.ready(), "bad")[1]["reasons"][0]
    world.shelves.free_bytes, world.shelves.is_open = None, False
    assert page(world.health.ready(), "bad")[1]["reasons"] == ["the models' folder is being opened"]


async def test_a_process_above_its_memory_is_to_be_started_again() -> None:
    used = psutil.Process().memory_info().rss
    assert page(World(memory_limit_bytes=used * 4).health.live(), "bad")[0] == 200
    status, body = page(World(memory_limit_bytes=used // 2).health.live(), "bad")
    assert status == 503
    assert "main memory" in body["reasons"][0]


async def test_a_look_that_hangs_is_told_and_made_only_once() -> None:
    now, asked = [0.0], 0
    hanging = asyncio.Event()

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await hanging.wait()

    look = Look(ask, lambda: now[0])
    running = asyncio.create_task(look.run())
    while not asked:
        await asyncio.sleep(0)
    assert look.wrong is None
    now[0] = LATE_S + 1
    assert look.wrong == f"no answer for {LATE_S + 1:.0f} s"
    assert asked == 1
    hanging.set()
    while look.wrong is not None:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})


async def test_a_look_at_the_server_is_not_made_while_there_is_none() -> None:
    world = World()
    world.gone, world.bus_error = True, BusUnavailable("gone")
    await world.looked()
    assert page(world.health.ready(), "bad")[1]["reasons"] == ["not connected to NATS"]


def test_downloads_of_which_nothing_comes_for_very_long_are_told_and_end_nothing() -> None:
    world = World()
    world.shelves.idle = STUCK_S
    assert page(world.health.healthy(), "bad")[0] == 200
    world.shelves.idle = STUCK_S + 1
    status, body = page(world.health.healthy(), "bad")
    assert status == 503
    assert "nothing has come" in body["reasons"][0]
    assert page(world.health.live(), "bad")[0] == 200
    assert "nothing has come" not in str(page(world.health.ready(), "bad")[1])
