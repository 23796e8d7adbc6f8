#!/usr/bin/env python3
"""A small engine that speaks llama-server's HTTP and takes its flags; nothing but the standard library.

Its text is numbered ("t0 t1 t2 …"), so that a test sees a byte that is lost, doubled or out of order. A last message
of role `assistant` that ends in "tN " is continued at N+1, as the real server does with a prefilled answer: a stream
carries only what is new, an answer in one piece repeats the prefill.

    engine.py --port 30000 --alias m --parallel 4 --chunks 20 --chunk-interval 0.02

Beside llama-server's flags (unknown ones are ignored):
    --slow-start S        answer 503 for S seconds      --no-listen            never open the port
    --chunks N            deltas in an answer (20)      --chunk-interval S     pause between them (0.02)
    --prompt-delay S      pause before the first        --die-after N          end the process after N deltas
    --exit-code N         with which code, 1; negative: by that signal         --die-at-start    end before loading
    --die-on TEXT         end the process when a request holds TEXT, in the middle of the prompt's delay
    --freeze-on TEXT      SIGSTOP itself then
    --freeze-after N      SIGSTOP itself after N deltas --cut-after N          end an answer's bytes after N deltas
    --ignore-sigterm      only SIGKILL ends it          --wrong-alias          serve another name than was asked for
    --spawn-child         start a child that lives on   --say TEXT             print TEXT to stderr at start
    --log-requests        print request bodies to stderr, as an engine's error messages may
    --hold-mib N          take so much memory
A model whose file says `does not load` ends it before loading.
On SIGUSR1 it goes deaf: connections are taken, and nothing is answered any more.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

VERSION = "version: 9999 (fake)\nbuilt with nothing for testing"
FLAGS = {"slots", "metrics", "no-webui", "no-ui", "ignore-sigterm", "wrong-alias", "die-at-start", "spawn-child"}
FLAGS |= {"no-listen", "log-requests", "jinja", "embeddings", "no-warmup"}
PUBLIC = {"/health", "/v1/health"}


def parse(argv: list[str]) -> dict[str, str]:
    """Flags as a dictionary, last one wins; `--flag=value` and `--flag value` alike."""
    out: dict[str, str] = {}
    rest = iter(argv)
    held: str | None = None
    for word in rest:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            out[name] = value or "1"
            held = None if value or name in FLAGS else name
        elif held is not None:
            out[held], held = word, None
    return out


class Slots:
    """Which slots work. A request waits for a free one, as in the real server."""

    def __init__(self, count: int) -> None:
        self.busy: list[bool] = [False] * count
        self._changed = asyncio.Condition()

    async def take(self) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: False in self.busy)
            slot = self.busy.index(False)
            self.busy[slot] = True
            return slot

    async def free(self, slot: int) -> None:
        async with self._changed:
            self.busy[slot] = False
            self._changed.notify_all()


class Engine:
    def __init__(self, options: dict[str, str]) -> None:
        self.alias = "somebody-elses-model" if "wrong-alias" in options else options.get("alias", "fake")
        self.key = os.environ.get("LLAMA_API_KEY") or options.get("api-key")
        self.slots = Slots(int(options.get("parallel", "1")))
        self.context = int(options.get("ctx-size", "4096"))
        self.chunks = int(options.get("chunks", "20"))
        self.interval = float(options.get("chunk-interval", "0.02"))
        self.prompt_delay = float(options.get("prompt-delay", "0"))
        self.die_after = int(options.get("die-after", "-1"))
        self.on = {name: options[f"{name}-on"].encode() for name in ("die", "freeze") if f"{name}-on" in options}
        self.freeze_after = int(options.get("freeze-after", "-1"))
        self.cut_after = int(options.get("cut-after", "-1"))
        self.exit_code = int(options.get("exit-code", "1"))
        self.log_requests = "log-requests" in options
        self.ready_at = time.monotonic() + float(options.get("slow-start", "0"))
        self.sent = 0
        self.held = b"x" * (int(options.get("hold-mib", "0")) << 20)
        self.deaf = False
        self.tasks: set[asyncio.Task[None]] = set()

    # -- HTTP -------------------------------------------------------------------------------------------------------
    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while await self.one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()

    async def one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if self.deaf:
            await asyncio.Event().wait()
        if self.log_requests:
            print(f"got exception: {body!r}", file=sys.stderr, flush=True)
        path = target.partition("?")[0]
        if path not in PUBLIC and self.key and headers.get("authorization") != f"Bearer {self.key}":
            return self.answer(writer, 401, error(401, "Invalid API Key", "authentication_error"))
        if time.monotonic() < self.ready_at:
            return self.answer(writer, 503, error(503, "Loading model", "unavailable_error"))
        if method == "GET":
            return self.get(writer, path)
        if path in ("/v1/chat/completions", "/v1/completions"):
            return await self.complete(reader, writer, body, chat="chat" in path)
        return self.answer(writer, 404, error(404, "File Not Found", "not_found_error"))

    def get(self, writer: asyncio.StreamWriter, path: str) -> bool:
        if path in PUBLIC:
            return self.answer(writer, 200, {"status": "ok"})
        if path in ("/v1/models", "/models"):
            meta = {"n_ctx_train": self.context, "n_params": 1000, "size": 1000}
            one = {"id": self.alias, "object": "model", "created": 1, "owned_by": "llamacpp", "meta": meta}
            return self.answer(writer, 200, {"object": "list", "data": [one]})
        if path == "/slots":
            n_ctx = self.context // len(self.slots.busy)
            slots = [{"id": i, "n_ctx": n_ctx, "is_processing": busy} for i, busy in enumerate(self.slots.busy)]
            return self.answer(writer, 200, slots)
        if path == "/props":
            settings = {"n_ctx": self.context // len(self.slots.busy)}
            props = {"total_slots": len(self.slots.busy), "model_alias": self.alias, "pid": os.getpid()}
            return self.answer(writer, 200, props | {"default_generation_settings": settings, "build_info": "fake"})
        if path == "/metrics":
            text = f"# TYPE llamacpp:tokens_predicted_total counter\nllamacpp:tokens_predicted_total {self.sent}\n"
            return self.answer(writer, 200, text.encode(), "text/plain; version=0.0.4")
        return self.answer(writer, 404, error(404, "File Not Found", "not_found_error"))

    def answer(self, writer: asyncio.StreamWriter, status: int, body: object, kind: str = "application/json") -> bool:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nServer: fake\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\n"
        writer.write(head.encode() + b"Keep-Alive: timeout=5, max=100\r\n\r\n" + raw)
        return True

    # -- completions ------------------------------------------------------------------------------------------------
    async def complete(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, *, chat: bool
    ) -> bool:
        try:
            request = json.loads(body)
            first, limit = self.extent(request)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            return self.answer(writer, 400, error(400, f"bad request: {problem}", "invalid_request_error"))
        worker = asyncio.create_task(self.generate(writer, request, first, limit, chat=chat))
        left = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({worker, left}, return_when=asyncio.FIRST_COMPLETED)
            if not worker.done():
                return False
            worker.result()
            return not request.get("stream") and not left.done()
        finally:
            worker.cancel()
            left.cancel()
            await asyncio.gather(worker, left, return_exceptions=True)

    def extent(self, request: dict[str, object]) -> tuple[int, int]:
        """Number of the first token, and how many follow at most."""
        messages = request.get("messages") or []
        assert isinstance(messages, list)
        last = messages[-1] if messages else {}
        first = 0
        if last.get("role") == "assistant" and str(last.get("content", "")).strip():
            first = int(str(last["content"]).split()[-1][1:]) + 1
        wanted = request.get("max_tokens") or request.get("max_completion_tokens") or self.chunks
        return first, min(int(str(wanted)), max(0, self.chunks - first) if first else int(str(wanted)))

    async def generate(
        self, writer: asyncio.StreamWriter, request: dict[str, object], first: int, limit: int, *, chat: bool
    ) -> None:
        slot = await self.slots.take()
        try:
            await asyncio.sleep(self.prompt_delay / 2)
            self.fall(json.dumps(request).encode())
            await asyncio.sleep(self.prompt_delay / 2)
            if request.get("stream"):
                await self.stream(writer, request, first, limit, chat=chat)
            else:
                for number in range(first, first + limit):
                    await self.before_token(number - first)
                self.answer(writer, 200, self.whole(request, first, limit, chat=chat))
            await writer.drain()
        finally:
            await asyncio.shield(self.slots.free(slot))

    def fall(self, request: bytes) -> None:
        """What a request may do to an engine."""
        for what, text in self.on.items():
            if text in request and what == "die":
                die(self.exit_code)
            elif text in request:
                os.kill(os.getpid(), signal.SIGSTOP)

    async def before_token(self, done: int) -> None:
        if done == self.die_after:
            die(self.exit_code)
        if done == self.freeze_after:
            os.kill(os.getpid(), signal.SIGSTOP)
        self.sent += 1
        await asyncio.sleep(self.interval)

    async def stream(
        self, writer: asyncio.StreamWriter, request: dict[str, object], first: int, limit: int, *, chat: bool
    ) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        writer.write(head + b"Server: fake\r\nKeep-Alive: timeout=5, max=100\r\n\r\n")
        if chat:
            self.event(writer, self.delta(request, {"role": "assistant", "content": None}, None, chat=chat))
        for number in range(first, first + limit):
            await self.before_token(number - first)
            if number - first == self.cut_after:
                break
            self.event(writer, self.delta(request, {"content": f"t{number} "}, None, chat=chat))
            await writer.drain()
        else:
            self.finish(writer, request, limit, first, chat=chat)
        writer.write(b"0\r\n\r\n")

    def finish(
        self, writer: asyncio.StreamWriter, request: dict[str, object], limit: int, first: int, *, chat: bool
    ) -> None:
        last = self.delta(request, {}, self.reason(first, limit), chat=chat)
        options = request.get("stream_options")
        with_usage = isinstance(options, dict) and options.get("include_usage")
        closing = {"timings": timings(limit)} if not with_usage else {}
        self.event(writer, last | closing)
        if with_usage:
            self.event(writer, self.delta(request, {}, None, chat=chat) | {"choices": [], **tail(limit)})
        self.event(writer, b"[DONE]")

    def event(self, writer: asyncio.StreamWriter, data: dict[str, object] | bytes) -> None:
        raw = b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"
        writer.write(b"%x\r\n%b\r\n" % (len(raw), raw))

    def reason(self, first: int, limit: int) -> str:
        return "stop" if first + limit >= self.chunks else "length"

    def delta(
        self, request: dict[str, object], delta: dict[str, object], reason: str | None, *, chat: bool
    ) -> dict[str, object]:
        choice: dict[str, object] = {"index": 0, "finish_reason": reason}
        choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
        kind = "chat.completion.chunk" if chat else "text_completion"
        return {"choices": [choice], "created": 1, "id": "chatcmpl-fake", "model": self.alias, "object": kind}

    def whole(self, request: dict[str, object], first: int, limit: int, *, chat: bool) -> dict[str, object]:
        text = "".join(f"t{number} " for number in range(first + limit))
        choice: dict[str, object] = {"index": 0, "finish_reason": self.reason(first, limit)}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        kind = "chat.completion" if chat else "text_completion"
        top = {"choices": [choice], "created": 1, "id": "chatcmpl-fake", "model": self.alias, "object": kind}
        return top | tail(limit)


def timings(tokens: int) -> dict[str, object]:
    return {"cache_n": 0, "prompt_n": 10, "prompt_ms": 1.0, "predicted_n": tokens, "predicted_ms": 1.0 * tokens}


def tail(tokens: int) -> dict[str, object]:
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    return {"usage": usage, "timings": timings(tokens)}


def error(code: int, message: str, kind: str) -> dict[str, object]:
    return {"error": {"code": code, "message": message, "type": kind}}


def die(code: int) -> None:
    if code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(10)
    os._exit(code)


def _is_spoilt(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"does not load" in file.read(1 << 16)


async def main(options: dict[str, str]) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        if "ignore-sigterm" in options:
            signal.signal(number, signal.SIG_IGN)
        else:
            loop.add_signal_handler(number, over.set)
    if "say" in options:
        print(options["say"], file=sys.stderr, flush=True)
    if "spawn-child" in options:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    if "die-at-start" in options or _is_spoilt(options.get("model", "")):
        die(int(options.get("exit-code", "1")))
    engine = Engine(options)
    loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(engine, "deaf", True))
    if "no-listen" not in options:
        try:
            host, port = options.get("host", "127.0.0.1"), int(options.get("port", "8080"))
            server = await asyncio.start_server(engine.connection, host, port, limit=64 << 20)
        except OSError as problem:
            print(f"E srv init: couldn't bind HTTP server socket: {problem}", file=sys.stderr)
            sys.exit(1)
        print(f"listening on http://{host}:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await over.wait()
    for task in list(engine.tasks):
        task.cancel()


if __name__ == "__main__":
    given = parse(sys.argv[1:])
    if "version" in given:
        print(VERSION, file=sys.stderr)
    elif "list-devices" in given:
        print("Available devices:\n" + given.get("device-line", ""))
    else:
        asyncio.run(main(given))
