"""The embedded engine: its table of flags, and the real thing under the run loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import xllamacpp

from web.client import Client
from worker.embedded_flags import TABLE, BadFlag, Row, apply
from worker.engine import Engine
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.launch import engine_argv
from worker.ports import PortPool

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "gateway" / "cli" / "templates" / "smollm2-tools.jinja"
BINARY = EngineBinary("embedded", (sys.executable, "-m", "worker.embedded"), "")


def field(params: object, path: str) -> object:
    for part in path.split("."):
        params = getattr(params, part)
    return params


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.names[0])
def test_every_flag_sets_a_field_that_this_release_has(row: Row) -> None:
    params = xllamacpp.CommonParams()
    before = field(params, row.field)
    for name in row.names:
        apply([f"--{name}"] if row.is_switch else [f"--{name}", row.sample], {}, params)
    assert type(field(params, row.field)) is type(before) or isinstance(before, int)


def test_a_variable_gives_the_default_and_the_flag_wins() -> None:
    params = xllamacpp.CommonParams()
    apply([], {"LLAMA_ARG_CTX_SIZE": "512", "LLAMA_ARG_KV_UNIFIED": "1", "LLAMA_API_KEY": "a,b"}, params)
    assert (params.n_ctx, params.kv_unified, params.api_keys) == (512, True, ["a", "b"])
    apply(["--ctx-size", "1024"], {"LLAMA_ARG_CTX_SIZE": "512"}, params)
    assert params.n_ctx == 1024


def test_what_the_launcher_writes_is_all_known_here() -> None:
    params = xllamacpp.CommonParams()
    words = engine_argv(BINARY, EngineSpec("org/m", Path("/m.gguf"), context_tokens=512, slots=3), 30001)
    apply(words[len(BINARY.argv) :], {}, params)
    assert (params.model.path, params.model_alias, params.port) == ("/m.gguf", {"org/m"}, 30001)
    assert (params.n_ctx, params.n_parallel, params.hostnames) == (1536, 3, ["127.0.0.1"])
    assert (params.endpoint_metrics, params.endpoint_slots, params.ui, params.use_jinja) == (True, True, False, True)


def test_flags_of_more_than_one_field() -> None:
    params = xllamacpp.CommonParams()
    apply(["--rerank", "--device", "none", "--no-kv-offload", "--chat-template-kwargs", '{"x": false}'], {}, params)
    assert (params.embedding, params.n_gpu_layers, params.no_kv_offload) == (True, 0, True)
    assert params.pooling_type == xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    assert params.default_template_kwargs == {"x": "false"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--warp-speed", "9"], "--warp-speed: the embedded engine does not have it"),
        (["--warp-speed"], "--warp-speed: not known here"),
        (["--ctx-size"], "--ctx-size needs a value"),
        (["--ctx-size", "many"], "--ctx-size 'many'"),
        (["--flash-attn", "maybe"], "is one of on, off, auto"),
        (["--cache-type-k", "q99"], "such as f16"),
        (["--device", "CUDA0"], "knows only 'none'"),
        (["-c", "512"], "write long flags"),
    ],
)
def test_a_flag_that_is_not_known_or_wrong_is_named(words: list[str], text: str) -> None:
    with pytest.raises(BadFlag, match=text):
        apply(words, {}, xllamacpp.CommonParams())


@pytest.mark.parametrize(("flag", "text"), [("--version", "version: 20"), ("--list-devices", "Available devices:")])
def test_it_answers_what_a_finder_asks(flag: str, text: str) -> None:
    done = subprocess.run([*BINARY.argv, flag], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(text)


def test_wrong_flags_end_it_with_two_and_a_broken_model_with_one(tmp_path: Path) -> None:
    broken = tmp_path / "m.gguf"
    broken.write_bytes(b"GGUX")
    runs = [
        subprocess.run([*BINARY.argv, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        for words in (["--nope", "1"], ["--model", str(broken), "--port", "1"])
    ]
    assert [run.returncode for run in runs] == [2, 1]
    assert "invalid argument: --nope" in runs[0].stderr


# -- the real engine with a real model


@pytest.fixture
async def engine(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.chdir(ROOT)
    made = Engine(
        "e0",
        EngineSpec("smol", small_model, context_tokens=1024, slots=2, flags={"chat-template-file": str(TEMPLATE)}),
        BINARY,
        ports=PortPool(25000, 25999, cooldown_s=0, folder=tmp_path),
        state_dir=tmp_path,
        settings=EngineSettings(restart_delay_s=0.05),
    )
    await made.start()
    yield made
    await made.stop(grace_s=1)


async def chat(client: Client, **fields: object) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 24, "temperature": 0} | fields
    answer = await client.fetch("POST", "/v1/chat/completions", orjson.dumps(body), timeout_s=60)
    assert answer.status == 200, answer.body
    return orjson.loads(answer.body)


class Collected:
    def __init__(self) -> None:
        self.bytes = b""
        self.first = asyncio.Event()
        self.over = asyncio.Event()

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        assert status == 200

    def data(self, data: bytes) -> None:
        self.bytes += data
        self.first.set()

    def end(self) -> None:
        self.over.set()

    def failed(self, error: Exception) -> None:
        self.over.set()


@pytest.mark.engine
class TestRealEngine:
    async def test_it_gives_each_slot_the_context_that_was_asked_for(self, engine: Engine) -> None:
        assert engine.capabilities.context_tokens == 1024
        assert engine.client is not None
        slots = orjson.loads((await engine.client.fetch("GET", "/slots", timeout_s=5)).body)
        assert [slot["n_ctx"] for slot in slots] == [1024, 1024]
        assert b"llamacpp:" in (await engine.client.fetch("GET", "/metrics", timeout_s=5)).body

    async def test_json_schema_tools_and_logprobs_work(self, engine: Engine) -> None:
        assert engine.client is not None
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        text = (await chat(engine.client, response_format=wanted, max_tokens=60))["choices"][0]["message"]["content"]
        assert isinstance(orjson.loads(text)["n"], int)
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
        ask = [{"role": "user", "content": "Use the get_weather function for the city Paris."}]
        called = await chat(engine.client, messages=ask, tools=[tool], tool_choice="required", max_tokens=150)
        function = called["choices"][0]["message"]["tool_calls"][0]["function"]
        assert function["name"] == "get_weather"
        assert "city" in orjson.loads(function["arguments"])
        told = await chat(engine.client, logprobs=True, top_logprobs=2, max_tokens=3)
        assert len(told["choices"][0]["logprobs"]["content"]) == 3

    async def test_without_tools_the_template_writes_what_the_models_own_does(
        self, engine: Engine, small_model: Path, tmp_path: Path
    ) -> None:
        own = Engine(
            "own",
            EngineSpec("own", small_model, context_tokens=512),
            BINARY,
            ports=PortPool(25000, 25999, cooldown_s=0, folder=tmp_path),
            state_dir=tmp_path,
            settings=EngineSettings(),
        )
        roles = ["user", "assistant", "user"]
        talks = [
            [{"role": role, "content": f"say {n}"} for n, role in enumerate(roles)],
            [{"role": role, "content": f"say {n}"} for n, role in enumerate(["system", *roles])],
        ]
        try:
            clients = [engine.client, await own.ensure_ready(30)]
            for talk in talks:
                body = orjson.dumps({"messages": talk})
                told = [await one.fetch("POST", "/apply-template", body, timeout_s=9) for one in clients if one]
                assert told[0].body == told[1].body
        finally:
            await own.stop(grace_s=1)

    async def test_leaving_in_mid_stream_frees_the_slot(self, engine: Engine) -> None:
        assert engine.client is not None
        sink = Collected()
        body = b'{"messages":[{"role":"user","content":"Tell a very long story."}],"max_tokens":900,"stream":true}'
        call = engine.client.stream("POST", "/v1/chat/completions", body, sink)
        await asyncio.wait_for(sink.first.wait(), 30)
        call.abort()
        began = time.monotonic()
        async with asyncio.timeout(5):
            while b'"is_processing":true' in (await engine.client.fetch("GET", "/slots", timeout_s=5)).body:
                pass
        assert time.monotonic() - began < 1

    async def test_its_log_never_holds_a_request(self, engine: Engine) -> None:
        assert engine.client is not None
        for body in (
            b'{"messages":[{"role":"user","content":"SECRETWORD is here"}],"max_tokens":8}',
            b'{"messages":[{"role":"user","content":"SECRETWORD',
            b'{"messages":[{"role":"SECRETWORD","content":5}]}',
            b'{"messages":[{"role":"user","content":"a"}],"grammar":"SECRETWORD ::= ]["}',
        ):
            await engine.client.fetch("POST", "/v1/chat/completions", body, timeout_s=30)
        assert "SECRETWORD" not in "\n".join(engine.log.tail(1000))
        assert engine.log.withheld > 0

    async def test_killed_it_is_back_and_stopped_it_is_gone(self, engine: Engine) -> None:
        first = psutil.Process(engine.pid)
        os.kill(first.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while engine.pid == first.pid or engine.state != "ready":
                await engine._changed.wait()
        second = psutil.Process(engine.pid)
        began = time.monotonic()
        await engine.stop()
        assert time.monotonic() - began < 2
        assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
