"""The micro service as a stranger sees it: a plain nats-py client, a real nats-server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from bus.connection import Bus, Message
from bus.message import error_headers
from bus.micro import Service
from schemas.errors import InvalidName, InvalidRequest, PunaError, RateLimited

SECRET = b"prompt-4711"
NewService = Callable[..., Service]
NewClient = Callable[[], Awaitable[Client]]


@pytest.fixture
async def new_service(bus: Bus) -> AsyncIterator[NewService]:
    """Factory: a service of this bus, not started; stopped after the test."""
    made: list[Service] = []

    def make(on: Bus = bus, **settings: Any) -> Service:
        facts = {"name": "puna-worker", "version": "1.2.3", "description": "control", "metadata": {"node": "n1"}}
        made.append(Service(on, **facts | settings))
        return made[-1]

    yield make
    for service in made:
        await service.stop()


@pytest.fixture
def service(new_service: NewService) -> Service:
    """A service of the `bus`."""
    return new_service()


@pytest.fixture
async def client(nats_server: Any) -> AsyncIterator[Client]:
    """A plain nats-py client."""
    connection = await nats.connect(nats_server.url)
    yield connection
    await connection.close()


async def ask(client: Client, subject: str, payload: bytes = b"", timeout_s: float = 2.0) -> Msg:
    return await client.request(subject, payload, timeout=timeout_s)


async def ask_all(client: Client, subject: str, count: int) -> list[dict[str, Any]]:
    """So many answers to one question, and the proof that there is no further one."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    found = [json.loads((await answers.next_msg(timeout=2)).data) for _ in range(count)]
    await client.publish(inbox, b"last")
    assert (await answers.next_msg(timeout=2)).data == b"last"
    return found


async def stats_of(client: Client, service: Service) -> dict[str, dict[str, Any]]:
    """The counts of each endpoint by its name."""
    answer = json.loads((await ask(client, f"$SRV.STATS.{service.name}.{service.id}")).data)
    return {endpoint["name"]: endpoint for endpoint in answer["endpoints"]}


def echo(message: Message) -> bytes:
    return message.payload


class Gate:
    """A slow handler: it tells when it has begun and ends when it is opened."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.open = asyncio.Event()

    async def __call__(self, message: Message) -> bytes:
        self.begun.release()
        await self.open.wait()
        return message.payload


# -- discovery ----------------------------------------------------------------------------------------------------


async def test_two_services_of_one_name_both_answer_ping_by_all_name_and_id(
    nats_server: Any, new_bus: Any, new_service: NewService, client: Client
) -> None:
    one, two = new_service(), new_service(await new_bus(nats_server))
    await one.start()
    await two.start()
    for subject in ("$SRV.PING", "$SRV.PING.puna-worker"):
        assert {answer["id"] for answer in await ask_all(client, subject, 2)} == {one.id, two.id}
    assert [answer["id"] for answer in await ask_all(client, f"$SRV.PING.puna-worker.{two.id}", 1)] == [two.id]


async def test_nats_pys_own_client_structures_read_ping_info_and_stats(service: Service, client: Client) -> None:
    service.endpoint("echo", "t.echo", echo, metadata={"format": "text"})
    service.endpoint("everyone", "t.everyone.*", echo, queue=None)
    await service.start()
    texts = [(await ask(client, f"$SRV.{verb}")).data for verb in ("PING", "INFO", "STATS")]
    ping, info, stats = (json.loads(text) for text in texts)
    assert ServicePing.from_dict(ping).to_dict() == ping
    assert ServiceInfo.from_dict(info).to_dict() == info
    read = ServiceStats.from_dict(stats)
    assert [endpoint.to_dict() for endpoint in read.endpoints] == stats["endpoints"]
    assert abs(read.started.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds() < 60


async def test_the_answers_have_exactly_the_protocols_fields(service: Service, client: Client) -> None:
    service.endpoint("echo", "t.echo", echo, metadata={"format": "text"})
    service.endpoint("everyone", "t.everyone", echo, queue=None)
    await service.start()
    ping, info, stats = [json.loads((await ask(client, f"$SRV.{verb}")).data) for verb in ("PING", "INFO", "STATS")]
    identity = {"name": "puna-worker", "id": service.id, "version": "1.2.3", "metadata": {"node": "n1"}}
    assert ping == {"type": "io.nats.micro.v1.ping_response", **identity}
    assert info == {
        "type": "io.nats.micro.v1.info_response",
        **identity,
        "description": "control",
        "endpoints": [
            {"name": "echo", "subject": "t.echo", "queue_group": "q", "metadata": {"format": "text"}},
            {"name": "everyone", "subject": "t.everyone", "queue_group": "", "metadata": {}},
        ],
    }
    assert stats.pop("started").endswith("Z")
    counts = {"num_requests": 0, "num_errors": 0, "last_error": "", "processing_time": 0, "average_processing_time": 0}
    data = {"running": 0, "running_limit": 16, "refused": 0}
    first = {"name": "echo", "subject": "t.echo", "queue_group": "q", **counts, "data": data}
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert stats["endpoints"][0] == first
    assert set(stats) == {"type", *identity, "endpoints"}


@pytest.mark.parametrize("bad", [{"name": "puna worker"}, {"name": ""}, {"version": "1.2"}, {"version": "01.2.3"}])
async def test_a_name_or_version_that_tools_could_not_read_is_refused(bus: Bus, bad: dict[str, str]) -> None:
    with pytest.raises(InvalidName):
        Service(bus, **{"name": "puna-worker", "version": "1.2.3"} | bad)


@pytest.mark.parametrize("version", ["0.1.0", "1.0.0-alpha.1", "1.0.0-0a.b-c+build.7"])
async def test_semantic_versions_are_taken(bus: Bus, version: str) -> None:
    assert Service(bus, name="x", version=version).ping()["version"] == version


async def test_an_endpoint_that_the_server_would_refuse_is_refused_at_once(service: Service) -> None:
    for name, subject, queue in (("a b", "t", "q"), ("a", "t..x", "q"), ("a", "t", "q q"), ("a", "", "q")):
        with pytest.raises(InvalidName):
            service.endpoint(name, subject, echo, queue=queue)
    assert service.info()["endpoints"] == []


async def test_all_subjects_are_named_for_a_check_of_permissions(service: Service) -> None:
    service.endpoint("echo", "t.echo", echo)
    assert len(service.subjects) == 10
    assert {"$SRV.PING", "$SRV.INFO.puna-worker", f"$SRV.STATS.puna-worker.{service.id}", "t.echo"} <= {
        *service.subjects
    }


# -- answers and counts -------------------------------------------------------------------------------------------


async def test_plain_and_awaiting_handlers_answer_and_the_counts_move(service: Service, client: Client) -> None:
    async def slowly(message: Message) -> bytes:
        await asyncio.sleep(0.02)
        return message.payload[::-1]

    service.endpoint("echo", "t.echo", echo)
    service.endpoint("slow", "t.slow", slowly)
    await service.start()
    for _ in range(2):
        assert (await ask(client, "t.echo", b"abc")).data == b"abc"
        assert (await ask(client, "t.slow", b"abc")).data == b"cba"
    stats = await stats_of(client, service)
    for endpoint in stats.values():
        assert (endpoint["num_requests"], endpoint["num_errors"], endpoint["last_error"]) == (2, 0, "")
        assert endpoint["average_processing_time"] == endpoint["processing_time"] // 2
    assert 0 < stats["echo"]["processing_time"] < 20_000_000 < 40_000_000 <= stats["slow"]["processing_time"]


async def test_reset_begins_to_count_anew(service: Service, client: Client) -> None:
    service.endpoint("echo", "t.echo", echo)
    await service.start()
    await ask(client, "t.echo")
    before = service.stats()["started"]
    service.reset()
    assert service.stats()["started"] > before
    fresh = (await stats_of(client, service))["echo"]
    assert (fresh["num_requests"], fresh["processing_time"], fresh["average_processing_time"]) == (0, 0, 0)
    await ask(client, "t.echo")
    assert (await stats_of(client, service))["echo"]["num_requests"] == 1


async def test_an_endpoint_added_later_answers_too(service: Service, client: Client, bus: Bus) -> None:
    await service.start()
    service.endpoint("echo", "t.echo", echo)
    await bus.flush(2)
    assert (await ask(client, "t.echo", b"late")).data == b"late"
    assert json.loads((await ask(client, "$SRV.INFO")).data)["endpoints"][0]["name"] == "echo"


async def test_one_queue_group_answers_once_and_none_lets_every_instance_answer(
    nats_server: Any, new_bus: Any, new_service: NewService, client: Client
) -> None:
    for service in (new_service(), new_service(await new_bus(nats_server))):
        service.endpoint("one", "t.one", lambda _: b"1")
        service.endpoint("all", "t.all", lambda _: b"1", queue=None)
        await service.start()
    assert await ask_all(client, "t.one", 1) == [1]
    assert await ask_all(client, "t.all", 2) == [1, 1]


async def test_a_request_without_a_reply_subject_is_worked_on_and_counted(
    service: Service, client: Client, heard: Any
) -> None:
    service.endpoint("note", "t.note", lambda message: heard(message.payload) or b"")
    await service.start()
    await client.publish("t.note", b"x")
    await client.publish("$SRV.PING", b"")
    assert await heard.count(1) == [b"x"]
    assert (await stats_of(client, service))["note"]["num_requests"] == 1


async def test_headers_reach_the_handler(service: Service, client: Client) -> None:
    service.endpoint("h", "t.h", lambda message: (message.headers or {})["Puna-Request"].encode())
    await service.start()
    answer = await client.request("t.h", b"", timeout=2, headers={"Puna-Request": "r1"})
    assert answer.data == b"r1"
    assert answer.headers is None


# -- errors -------------------------------------------------------------------------------------------------------


async def test_a_puna_error_is_answered_with_its_status_and_the_openai_body(service: Service, client: Client) -> None:
    def refuse(_: Message) -> bytes:
        raise InvalidRequest("send a request id\nplease", param="request")

    async def refuse_later(_: Message) -> bytes:
        raise RateLimited("too many", retry_after_s=1.5)

    service.endpoint("refuse", "t.refuse", refuse)
    service.endpoint("later", "t.later", refuse_later)
    await service.start()
    now, later = await ask(client, "t.refuse"), await ask(client, "t.later")
    assert now.headers == {"Nats-Service-Error": "send a request id please", "Nats-Service-Error-Code": "400"}
    error = json.loads(now.data)["error"]
    assert (error["code"], error["type"], error["param"]) == ("invalid_request", "invalid_request_error", "request")
    assert later.headers is not None
    assert (later.headers["Nats-Service-Error-Code"], later.headers["Retry-After"]) == ("429", "2")
    stats = await stats_of(client, service)
    assert {name: endpoint["last_error"] for name, endpoint in stats.items()} == {
        "refuse": "400:invalid_request",
        "later": "429:rate_limited",
    }


def breaks(message: Message) -> bytes:
    raise ValueError(f"cannot read {message.payload!r}")


async def breaks_later(message: Message) -> bytes:
    await asyncio.sleep(0)
    raise ValueError(f"cannot read {message.payload!r}")


async def cancels_itself(message: Message) -> bytes:
    await asyncio.sleep(0)
    raise asyncio.CancelledError(message.payload)


def cancels_at_once(message: Message) -> bytes:
    raise asyncio.CancelledError(message.payload)


def answers_with_text(message: Message) -> Any:
    return message.payload.decode()


@pytest.mark.parametrize("handler", [breaks, breaks_later, cancels_itself, cancels_at_once, answers_with_text])
async def test_a_broken_handler_is_a_500_that_quotes_nothing_and_goes_on_answering(
    handler: Any, service: Service, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service.endpoint("broken", "t.broken", handler)
    await service.start()
    for _ in range(3):
        answer = await ask(client, "t.broken", SECRET)
        assert answer.headers is not None
        assert answer.headers["Nats-Service-Error-Code"] == "500"
        assert json.loads(answer.data)["error"]["code"] == "internal_error"
        assert SECRET not in answer.data
        assert "4711" not in answer.headers["Nats-Service-Error"]
    broken = (await stats_of(client, service))["broken"]
    assert (broken["num_requests"], broken["num_errors"], broken["last_error"]) == (3, 3, "500:internal_error")
    assert "4711" not in caplog.text
    assert (await ask(client, "$SRV.PING")).data


async def test_broken_requests_do_not_flood_the_log(
    service: Service, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    service.endpoint("broken", "t.broken", breaks)
    await service.start()
    await asyncio.gather(*(ask(client, "t.broken") for _ in range(50)))
    assert sum(1 for record in caplog.records if "handler failed" in record.message) <= 2


async def test_last_error_never_quotes_a_request_even_where_the_error_does(service: Service, client: Client) -> None:
    def refuse(message: Message) -> bytes:
        raise InvalidName(f"model {message.payload.decode()!r} is no name")

    service.endpoint("refuse", "t.refuse", refuse)
    await service.start()
    assert SECRET in (await ask(client, "t.refuse", SECRET)).data  # its own sender may read it
    assert (await stats_of(client, service))["refuse"]["last_error"] == "400:invalid_name"


async def test_an_answer_over_max_payload_is_an_error_and_the_connection_stays(
    new_nats_server: Any, new_bus: Any, new_service: NewService
) -> None:
    server = new_nats_server("max_payload: 4096")
    bus = await new_bus(server)
    asker = await new_bus(server)
    service = new_service(bus)
    service.endpoint("big", "t.big", lambda _: bytes(5000))
    await service.start()
    answer = await asker.request("t.big", timeout_s=2)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "413"
    assert "5000" in json.loads(answer.payload)["error"]["message"]
    assert service.stats()["endpoints"][0]["last_error"] == "413:body_too_large"
    assert bus.session == 1


async def test_an_error_that_nobody_may_repeat_carries_no_retry(bus: Bus) -> None:
    assert "Retry-After" not in error_headers(PunaError("x", retry_after_s=1.0))
    assert len(error_headers(PunaError("x" * 5000))["Nats-Service-Error"]) == 200


# -- tasks --------------------------------------------------------------------------------------------------------


async def test_a_slow_handler_blocks_neither_others_nor_itself(service: Service, client: Client) -> None:
    gate = Gate()
    service.endpoint("slow", "t.slow", gate)
    service.endpoint("echo", "t.echo", echo)
    await service.start()
    waiting = [asyncio.create_task(ask(client, "t.slow", b"%d" % number)) for number in range(3)]
    for _ in waiting:
        await gate.begun.acquire()
    assert (await ask(client, "t.echo", b"quick")).data == b"quick"
    slow = (await stats_of(client, service))["slow"]
    assert (slow["num_requests"], slow["data"]["running"]) == (0, 3)
    assert sum(1 for task in asyncio.all_tasks() if task.get_name() == "micro puna-worker.slow") == 3
    gate.open.set()
    assert [answer.data for answer in await asyncio.gather(*waiting)] == [b"0", b"1", b"2"]
    assert (await stats_of(client, service))["slow"]["num_requests"] == 3


async def test_over_its_limit_an_endpoint_refuses_with_503_and_serves_again_after(
    service: Service, client: Client
) -> None:
    gate = Gate()
    service.endpoint("slow", "t.slow", gate, running_limit_requests=2)
    await service.start()
    waiting = [asyncio.create_task(ask(client, "t.slow")) for _ in range(2)]
    for _ in waiting:
        await gate.begun.acquire()
    refused = await ask(client, "t.slow", SECRET)
    assert refused.headers is not None
    assert (refused.headers["Nats-Service-Error-Code"], refused.headers["Retry-After"]) == ("503", "1")
    assert json.loads(refused.data)["error"]["code"] == "unavailable"
    gate.open.set()
    await asyncio.gather(*waiting)
    assert (await ask(client, "t.slow", b"again")).data == b"again"
    slow = (await stats_of(client, service))["slow"]
    assert (slow["num_requests"], slow["num_errors"], slow["last_error"]) == (4, 1, "503:unavailable")
    assert slow["data"] == {"running": 0, "running_limit": 2, "refused": 1}


async def test_a_handler_over_its_time_is_cancelled_and_answered_with_504(service: Service, client: Client) -> None:
    cancelled = asyncio.Event()

    async def for_ever(_: Message) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    service.endpoint("ever", "t.ever", for_ever, timeout_s=0.05)
    await service.start()
    answer = await ask(client, "t.ever")
    assert cancelled.is_set()
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "504"
    ever = (await stats_of(client, service))["ever"]
    assert (ever["last_error"], ever["data"]["running"]) == ("504:deadline_exceeded", 0)


async def test_a_handlers_own_time_out_is_its_fault_and_not_the_limits(service: Service, client: Client) -> None:
    async def gives_up(_: Message) -> bytes:
        raise TimeoutError("inside")

    service.endpoint("up", "t.up", gives_up)
    await service.start()
    answer = await ask(client, "t.up")
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "500"


# -- life ---------------------------------------------------------------------------------------------------------


async def test_start_and_stop_may_be_called_twice_and_again(service: Service, client: Client, bus: Bus) -> None:
    service.endpoint("echo", "t.echo", echo)
    for _ in range(3):
        await service.start()
        await service.start()
        assert len(await ask_all(client, "$SRV.PING", 1)) == 1
        assert (await ask(client, "t.echo", b"x")).data == b"x"
        await service.stop()
        await service.stop()
        await bus.flush(2)
        for subject in ("$SRV.PING", "t.echo"):
            with pytest.raises(NoRespondersError):
                await ask(client, subject)


async def test_stop_lets_what_runs_end_and_answers_the_rest_with_503(service: Service, client: Client) -> None:
    gate, stuck = Gate(), Gate()
    service.endpoint("quick", "t.quick", gate)
    service.endpoint("stuck", "t.stuck", stuck)
    await service.start()
    quick, late = asyncio.create_task(ask(client, "t.quick", b"ok")), asyncio.create_task(ask(client, "t.stuck"))
    await gate.begun.acquire()
    await stuck.begun.acquire()
    asyncio.get_running_loop().call_later(0.05, gate.open.set)
    await service.stop(grace_s=0.3)
    assert (await quick).data == b"ok"
    refused = (await late).headers
    assert refused is not None
    assert (refused["Nats-Service-Error-Code"], refused["Retry-After"]) == ("503", "1")


async def test_stop_does_not_wait_for_ever_for_a_handler_that_ignores_its_end(
    service: Service, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def deaf(_: Message) -> bytes:
        begun.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue
        return b""

    service.endpoint("deaf", "t.deaf", deaf)
    await service.start()
    await client.publish("t.deaf", b"")
    await begun.wait()
    async with asyncio.timeout(5):
        await service.stop(grace_s=0)
    end.set()
    assert "handler ignores its end" in caplog.text


async def test_it_answers_again_after_a_server_restart_with_the_same_id_and_counts(
    nats_server: Any, new_bus: Any, service: Service, bus: Bus
) -> None:
    asker = await new_bus(nats_server)
    service.endpoint("echo", "t.echo", echo)
    await service.start()
    for number in range(1, 4):
        assert (await asker.request("t.echo", b"x", timeout_s=2)).payload == b"x"
        gone = [asyncio.Event(), asyncio.Event()]
        bus.on_lost(gone[0].set)
        asker.on_lost(gone[1].set)
        nats_server.kill()
        await asyncio.gather(*(event.wait() for event in gone))
        nats_server.start()
        await asyncio.gather(bus.ready(5), asker.ready(5))
        assert json.loads((await asker.request("$SRV.PING", timeout_s=2)).payload)["id"] == service.id
        stats = json.loads((await asker.request("$SRV.STATS.puna-worker", timeout_s=2)).payload)
        assert stats["endpoints"][0]["num_requests"] == number


async def test_an_answer_that_finds_no_connection_is_counted_as_an_error(
    nats_server: Any, service: Service, client: Client, bus: Bus
) -> None:
    gate, gone = Gate(), asyncio.Event()
    bus.on_lost(gone.set)
    service.endpoint("slow", "t.slow", gate)
    await service.start()
    await client.publish("t.slow", b"", reply="nobody")
    await gate.begun.acquire()
    nats_server.kill()
    await gone.wait()
    gate.open.set()
    await service.stop()
    assert service.stats()["endpoints"][0]["last_error"] == "503:bus_unavailable"


async def test_started_without_a_connection_it_answers_once_there_is_one(
    nats_server: Any, new_bus: Any, service: Service, bus: Bus
) -> None:
    gone = asyncio.Event()
    bus.on_lost(gone.set)
    nats_server.kill()
    await gone.wait()
    service.endpoint("echo", "t.echo", echo)
    await service.start()
    nats_server.start()
    await bus.ready(5)
    asker = await new_bus(nats_server)
    assert (await asker.request("t.echo", b"x", timeout_s=2)).payload == b"x"
