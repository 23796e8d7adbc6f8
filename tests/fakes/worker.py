"""A worker that does what it is told: it beats, takes requests from the line and speaks frames, on a real server.

Built on plain nats-py and the wire's own words, so that it does not share our mistakes. As a program,
`python tests/fakes/worker.py NATS_URL NODE MODEL` answers every request with three events of a stream.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas.subjects import Names, encode
from schemas.topology import line

PULL_S = 1.0
BEAT_S = 1.0
VERBS = ("ping", "load", "unload", "restart", "drain", "explain", "logs", "engine-get")
CAPABILITIES = {
    "context_tokens": 4096,
    "trained_context_tokens": 8192,
    "parameters": 135000000,
    "size_bytes": 98000000,
    "architecture": "llama",
    "quantisation": "Q4_K",
    "can": ["chat", "completion"],
}


def event(text: str) -> bytes:
    """One chunk of a chat, as llama-server writes it."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


DONE = b"data: [DONE]\n\n"


@dataclass
class Job:
    """One request that was taken from the line."""

    worker: FakeWorker
    message: Msg
    next_seq: int = 0
    epoch_said: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        return self.message.headers or {}

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.message.data)

    @property
    def epoch(self) -> int:
        return self.epoch_said or int(self.headers["Puna-Epoch"])

    def _raw(self, kind: str, payload: bytes, seq: int | None) -> bytes:
        number = self.next_seq if seq is None else seq
        self.next_seq = number + 1
        return f"{kind} {self.epoch} {number}\n".encode() + payload

    async def frame(self, kind: str, payload: bytes | dict[str, Any] = b"", seq: int | None = None) -> None:
        """Publish one frame; `seq` breaks the order on purpose."""
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.worker.nc.publish(self.headers["Puna-Reply"], self._raw(kind, raw, seq))
        await self.worker.nc.flush()

    async def accept(self, node: str | None = None) -> bytes:
        """What the gateway answers to an accept: `go` or `gone`. On `go` the job is acked."""
        payload = json.dumps({"node": node or self.worker.node, "engine": "e1", "device": "cpu:0"}).encode()
        answer = await self.worker.nc.request(self.headers["Puna-Reply"], self._raw("accept", payload, 0), timeout=2)
        if answer.data == b"go":
            await self.ack()
        return answer.data

    async def ack(self) -> None:
        await self.worker.nc.publish(self.message.reply, b"+ACK")

    async def open(self, status: int = 200, content_type: str = "text/event-stream") -> None:
        await self.frame("open", {"status": status, "content_type": content_type})

    async def data(self, payload: bytes, seq: int | None = None) -> None:
        await self.frame("data", payload, seq)

    async def end(self, **more: Any) -> None:
        await self.frame("end", {"data_frames": 1, **more})

    async def refuse(self, code: str, status: int = 503, *, retryable: bool = True, message: str = "no") -> None:
        """The only frame of a request that was not accepted, or the last of one that was."""
        body = {"code": code, "status": status, "retryable": retryable, "message": message}
        await self.frame("error", body, seq=max(self.next_seq, 1))

    async def begin(self) -> None:
        """Accept and open an event stream."""
        assert await self.accept() == b"go"
        await self.open()

    async def answer(self, *texts: str) -> None:
        """A whole stream, from accept to end."""
        await self.begin()
        for text in texts:
            await self.data(event(text))
        await self.data(DONE)
        await self.end()

    async def answer_whole(self, body: dict[str, Any], status: int = 200, **end: Any) -> None:
        """A whole answer that is no stream; `end`: further fields of its end frame."""
        assert await self.accept() == b"go"
        await self.open(status, "application/json")
        await self.data(json.dumps(body).encode())
        await self.end(**end)


@dataclass
class FakeWorker:
    """One node with one engine."""

    nc: Client
    node: str
    model: str
    slots: int = 4
    state: str = "ready"
    draining: bool = False
    capabilities: dict[str, Any] = field(default_factory=lambda: dict(CAPABILITIES))
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of its engine."""
    boot_id: str = "boot-1"
    sequence: int = 0
    cancels: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    credits: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    demands: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    demanded: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    """The same demands by what they say."""
    asked: asyncio.Queue[Job] = field(default_factory=asyncio.Queue)
    """Requests that named this node."""
    named: bool = True
    """It listens to them."""
    engines: list[dict[str, Any]] | None = None
    """All its engines, where one as above will not do."""
    offers: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    """Further fields of its heartbeat."""
    refusals: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    """By control verb: HTTP status, code and message with which it is refused."""
    orders: asyncio.Queue[tuple[str, dict[str, Any]]] = field(default_factory=asyncio.Queue)
    """Control verbs that were asked of it, with their bodies."""
    log_lines: list[str] = field(default_factory=lambda: ["main: loading", "main: ready"])
    followers: list[str] = field(default_factory=list)
    """Where the lines of its engine are followed."""
    _beating: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, url: str, node: str = "n1", model: str = "m", **more: Any) -> FakeWorker:
        """Connected and seen in the bucket."""
        nc = await nats.connect(url, reconnect_time_wait=0.02, max_reconnect_attempts=-1, error_cb=_quiet)
        worker = cls(nc, node, model, **more)
        names = worker.names

        async def hear_cancel(message: Msg) -> None:
            worker.cancels.put_nowait(json.loads(message.data))

        async def hear_credit(message: Msg) -> None:
            for text in message.data.decode().splitlines():
                worker.credits.put_nowait(text)

        async def hear_demand(message: Msg) -> None:
            worker.demands.put_nowait(message.subject)
            worker.demanded.put_nowait(json.loads(message.data or b"{}"))

        async def hear_request(message: Msg) -> None:
            worker.asked.put_nowait(Job(worker, message))

        if worker.named:
            await nc.subscribe(names.node_infer_any(node), cb=hear_request)

        await nc.subscribe(names.node(node, "cancel"), cb=hear_cancel)
        await nc.subscribe(names.node(node, "credit"), cb=hear_credit)
        await nc.subscribe(names.demand(model), cb=hear_demand)
        for verb in VERBS:
            await nc.subscribe(names.node(node, verb), cb=worker._ordered)
        await worker.beat()
        worker._beating = asyncio.create_task(worker._beat_on())
        return worker

    names = Names()

    def heartbeat(self) -> dict[str, Any]:
        engine = {
            "engine": "e1",
            "model": self.model,
            "devices": ["cpu:0"],
            "state": self.state,
            "slots_total": self.slots,
            "since": 1.0,
            "capabilities": self.capabilities,
            **self.more,
        }
        return {
            "node": self.node,
            "boot_id": self.boot_id,
            "sequence": self.sequence,
            "version": "0.1.0",
            "started_at": 1700000000.0,
            "engines": [engine] if self.engines is None else self.engines,
            "offers": self.offers,
            "draining": self.draining,
            "pressure": {"service_seconds_median": 2.0},
            **self.about,
        }

    async def _ordered(self, message: Msg) -> None:
        """A control verb, answered as the wire says."""
        verb = message.subject.rsplit(".", 1)[1]
        body = json.loads(message.data or b"{}")
        self.orders.put_nowait((verb, body))
        refusal = self.refusals.get(verb) or self._not_here(verb, body)
        if refusal is not None:
            status, code, text = refusal
            headers = {"Nats-Service-Error": text, "Nats-Service-Error-Code": str(status)}
            error = {"error": {"message": text, "type": "server_error", "param": None, "code": code}}
            await self.nc.publish(message.reply, json.dumps(error).encode(), headers=headers)
            return
        await self.nc.publish(message.reply, json.dumps(self._answer(verb, body)).encode())
        if verb == "logs" and body.get("follow"):
            self.followers.append(message.reply)

    def _not_here(self, verb: str, body: dict[str, Any]) -> tuple[int, str, str] | None:
        beat, model, engine = self.heartbeat(), body.get("model"), body.get("engine")
        if verb == "explain" and all(one["model"] != model for one in [*beat["offers"], *beat["engines"]]):
            return (404, "model_not_found", f"{model!r} is not one of node {self.node}'s models")
        if verb == "logs" and engine and all(one["engine"] != engine for one in beat["engines"]):
            return (404, "not_found", f"node {self.node} has no engine {engine!r}")
        return None

    def _answer(self, verb: str, body: dict[str, Any]) -> Any:
        beat = self.heartbeat()
        model, node = body.get("model"), {"node": self.node}
        having = [
            one["engine"] for one in beat["engines"] if one["model"] == model or one["engine"] == body.get("engine")
        ]
        if verb == "load":
            return node | {"model": model, "loading": True, "begun": True, "engine": "engine-9", "devices": ["cpu:0"]}
        if verb == "unload":
            return node | {"model": model, "engines": having}
        if verb == "restart":
            return node | {"model": model, "engine": having[0], "restarting": True, "begun": True}
        if verb == "drain":
            self.draining = True
            return node | {"draining": True, "active": 0}
        if verb == "explain":
            return node | {"offers": beat["offers"], "engines": beat["engines"]}
        if verb == "logs":
            count = body.get("lines", 100)
            shown = self.log_lines[-count:] if count else []
            return node | {"model": model, "engine": "e1", "lines": shown, "left_out": 0, "withheld_total": 0}
        if verb == "engine-get":
            return [{"id": 0}] if body["path"] == "/slots" else {"total_slots": self.slots, "model_path": "m.gguf"}
        return node

    async def follow_with(self, *lines: str) -> None:
        """More lines of the engine for everybody who follows; none: its output ends."""
        for reply in self.followers:
            payload = json.dumps({"lines": list(lines), "left_out": 0}).encode() if lines else b""
            await self.nc.publish(reply, payload)
        await self.nc.flush()

    async def beat(self) -> None:
        """One heartbeat, now."""
        self.sequence += 1
        subject = f"$KV.{self.names.bucket_nodes}.{encode(self.node)}"
        await self.nc.publish(subject, json.dumps(self.heartbeat()).encode())
        await self.nc.flush()

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            if self.nc.is_connected:
                try:
                    await self.beat()
                except (OSError, nats.errors.Error) as error:
                    print("beat not sent:", error, file=sys.stderr)

    async def take(self, lane: str = "interactive", timeout_s: float = 10.0) -> Job:
        """The next request of the line. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    message = await self._pull(lane)
                except (nats.errors.Error, TimeoutError):
                    await asyncio.sleep(0.02)
                    continue
                if message is not None:
                    return Job(self, message)

    async def _pull(self, lane: str) -> Msg | None:
        spec = line(self.names, lane, self.model)
        body = {"stream_name": spec.stream, "config": spec.config()}
        api = f"$JS.API.CONSUMER.CREATE.{spec.stream}.{spec.durable}.{spec.filter_subject}"
        await self.nc.request(api, json.dumps(body).encode(), timeout=0.5)
        inbox = self.nc.new_inbox()
        subscription = await self.nc.subscribe(inbox)
        ask = {"batch": 1, "expires": int(PULL_S * 1e9), "group": "slots", "priority": 0}
        try:
            await self.nc.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}", json.dumps(ask).encode(), inbox
            )
            message = await subscription.next_msg(timeout=PULL_S + 0.5)
        finally:
            await subscription.unsubscribe()
        return message if message.reply else None

    async def line_length(self) -> int:
        """Requests that stand in the stream of all lines."""
        answer = await self.nc.request(f"$JS.API.STREAM.INFO.{self.names.stream_queue}", b"", timeout=2)
        return int(json.loads(answer.data)["state"]["messages"])

    async def until_line_has(self, count: int, timeout_s: float = 3.0) -> None:
        """Until so many requests stand in the lines. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while await self.line_length() != count:
                await asyncio.sleep(0.002)

    async def vanish(self) -> None:
        """Heartbeats stop; the connection stays."""
        if self._beating is not None:
            self._beating.cancel()

    async def stop(self) -> None:
        await self.vanish()
        await self.nc.close()


async def _quiet(_: Exception) -> None:
    """Lost connections are what these tests are about."""


async def main(url: str, node: str, model: str) -> None:
    worker = await FakeWorker.start(url, node, model)
    print(json.dumps({"node": node}), flush=True)
    while True:
        job = await worker.take(timeout_s=86400)
        await job.answer("one ", "two ", "three")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
