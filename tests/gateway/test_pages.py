"""Pages, keys and probes."""

from __future__ import annotations

import asyncio
import hashlib
import re

import openai
import pytest

CHAT = "/v1/chat/completions"


async def test_the_models_page_has_openais_shape_and_llama_servers_meta(gateway, start_worker) -> None:
    await start_worker(model="org/Qwen2.5:Q4_K_M")
    await gateway.until_seen("org/Qwen2.5:Q4_K_M")
    listing = (await gateway.http.get("/v1/models")).json()
    assert listing["object"] == "list"
    (model,) = listing["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("org/Qwen2.5:Q4_K_M", "model", "puna")
    assert isinstance(model["created"], int)
    assert model["capabilities"] == ["chat", "completion"]
    assert model["meta"] == {
        "n_ctx": 4096,
        "n_ctx_train": 8192,
        "n_params": 135000000,
        "size": 98000000,
        "architecture": "llama",
        "quantization": "Q4_K",
    }
    for path in ("/v1/models/org/Qwen2.5:Q4_K_M", "/v1/models/org%2FQwen2.5%3AQ4_K_M"):
        assert (await gateway.http.get(path)).json() == model


async def test_a_model_of_several_nodes_can_what_all_of_them_can(gateway, start_worker) -> None:
    await start_worker()
    await start_worker(node="n2", capabilities={"context_tokens": 2048, "can": ["completion"]})
    await start_worker(node="n3", capabilities={})
    await start_worker(node="n4", state="crashed", capabilities={"context_tokens": 64, "can": ["embedding"]})
    async with asyncio.timeout(5):
        while len((model := (await gateway.http.get("/v1/models/m")).json()).get("puna", {}).get("nodes", ())) < 4:
            await asyncio.sleep(0.01)
    assert (model["meta"]["n_ctx"], model["capabilities"]) == (2048, ["completion"])


async def test_a_model_that_cannot_be_started_is_listed_with_the_reason(gateway, start_worker) -> None:
    reason = "the model file m.gguf cannot be used: it does not begin with 'GGUF'"
    await start_worker(state="crashed", more={"unfit": True, "reason": reason, "next_retry_at": 1.0})
    await gateway.until_seen()
    told = (await gateway.http.get("/v1/models/m")).json()["puna"]
    assert (told["state"], told["reason"]) == ("unavailable", f"engine not started on n1: {reason}")


async def test_the_openai_sdk_lists_retrieves_and_streams(gateway, worker) -> None:
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0)
    assert [model.id async for model in client.models.list()] == ["m"]
    assert (await client.models.retrieve("m")).owned_by == "puna"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="m", messages=[], temperature="hot")  # type: ignore[call-overload]
    assert wrong.value.param == "messages" or wrong.value.param == "temperature"
    asked = asyncio.create_task(
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
    )
    job = await worker.take()
    answering = asyncio.create_task(job.answer("one ", "two"))
    texts = [chunk.choices[0].delta.content async for chunk in await asked]
    await answering
    assert texts == ["one ", "two"]
    await client.close()


async def test_the_openai_sdk_reads_an_error_inside_a_stream(gateway, worker) -> None:
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0)
    asked = asyncio.create_task(
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
    )
    job = await worker.take()
    await job.begin()
    await job.data(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    await job.data(b"lost", seq=9)
    with pytest.raises(openai.APIError, match="lost on the way"):
        async for _ in await asked:
            pass
    await client.close()


async def test_nodes_and_queue_tell_what_there_is(gateway, worker) -> None:
    (node,) = (await gateway.http.get("/v1/nodes")).json()["data"]
    assert (node["id"], node["state"], node["reason"]) == ("n1", "ready", None)
    assert node["engines"][0]["model"] == "m"
    assert node["heard_seconds_ago"] < 3
    assert (await gateway.http.get("/v1/nodes/n1")).json()["id"] == "n1"
    assert (await gateway.http.get("/v1/nodes/n9")).status_code == 404
    asked = gateway.ask()
    await worker.until_line_has(1)
    rows = (await gateway.http.get("/v1/queue")).json()["data"]
    assert {(row["lane"], row["waiting"]) for row in rows} == {("interactive", 1), ("batch", 0)}
    job = await worker.take()
    await job.answer_whole({})
    await asked


async def test_probes_tell_ready_from_alive(gateway, start_worker) -> None:
    assert (await gateway.http.get("/livez")).json() == {"status": "ok"}
    assert (await gateway.http.get("/readyz")).status_code == 200
    health = await gateway.http.get("/health")
    assert (health.status_code, health.json()["error"]["type"]) == (503, "unavailable_error")
    await start_worker()
    await gateway.until_seen()
    assert (await gateway.http.get("/health")).json() == {"status": "ok"}
    assert (await gateway.http.get("/healthz")).status_code == 200


async def test_unknown_paths_and_wrong_methods_speak_openais_shape(gateway) -> None:
    unknown = await gateway.http.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    for method, path, allow in (
        ("GET", CHAT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/health", "GET, HEAD"),
    ):
        wrong = await gateway.http.request(method, path)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == allow
        assert re.fullmatch(r"[0-9a-f]{24}", wrong.headers["x-request-id"])


async def test_a_client_id_that_cannot_be_used_is_replaced(gateway) -> None:
    for given in ("a b", "x" * 129, "é"):
        answered = (await gateway.http.get("/livez", headers={"x-request-id": given.encode()})).headers["x-request-id"]
        assert answered != given
    assert (await gateway.http.get("/livez", headers={"x-request-id": "mine_7"})).headers["x-request-id"] == "mine_7"


async def test_refusals_before_any_page_carry_the_id_and_the_cors_headers(start_gateway) -> None:
    gateway = await start_gateway(body_bytes=100, cors_origins="https://ui.example")
    headers = {"x-request-id": "mine_8", "origin": "https://ui.example"}
    large = await gateway.http.post(CHAT, content=b"x" * 101, headers=headers)
    assert (large.status_code, large.headers["x-request-id"]) == (413, "mine_8")
    assert large.headers["access-control-allow-origin"] == "https://ui.example"
    many = await gateway.http.get("/livez", headers={"x": "y" * 40_000})
    assert many.status_code == 431
    assert re.fullmatch(r"[0-9a-f]{24}", many.headers["x-request-id"])


async def test_keys_guard_all_but_probes_and_metrics(start_gateway) -> None:
    digest = hashlib.sha256(b"two").hexdigest()
    gateway = await start_gateway(keys=("a:one", f"b:sha256:{digest}"))
    for path in ("/v1/models", "/v1/nodes", "/v1/queue"):
        refused = await gateway.http.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert (await gateway.http.post(CHAT, json=gateway.chat())).status_code == 401
    assert (await gateway.http.post(CHAT, json=gateway.chat(), headers={"x-api-key": "wrong"})).status_code == 401
    for headers in ({"authorization": "Bearer one"}, {"x-api-key": "two"}):
        assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 200
    for path in ("/health", "/healthz", "/livez", "/readyz", "/metrics"):
        assert (await gateway.http.get(path)).status_code != 401


async def test_metrics_can_be_closed(start_gateway) -> None:
    gateway = await start_gateway(keys=("a:one",), metrics_open=False)
    assert (await gateway.http.get("/metrics")).status_code == 401


async def test_the_tenant_travels_by_name_and_never_by_key(start_gateway, start_worker) -> None:
    gateway = await start_gateway(keys=("team:s3cret",))
    worker = await start_worker()
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    gateway.http.headers["authorization"] = "Bearer s3cret"
    await gateway.until_seen()
    asked = gateway.ask(headers={"traceparent": trace})
    job = await worker.take()
    assert (job.headers["Puna-Tenant"], job.headers["traceparent"]) == ("team", trace)
    assert "s3cret" not in str(job.headers)
    await job.answer_whole({})
    await asked


async def test_cors_is_off_until_an_origin_is_listed(gateway, start_gateway) -> None:
    ask = {"origin": "https://ui.example", "access-control-request-method": "POST"}
    closed = await gateway.http.options(CHAT, headers=ask)
    assert closed.status_code == 405
    assert "access-control-allow-origin" not in closed.headers
    opened = await start_gateway(cors_origins="https://ui.example", keys=("a:one",))
    preflight = await opened.http.options(CHAT, headers=ask)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://ui.example"
    assert "access-control-allow-origin" in (await opened.http.get("/v1/models", headers=ask)).headers
    other = await opened.http.get("/livez", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


async def test_metrics_count_what_happened(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.answer("one", "two")
    await asked
    await gateway.ask(model="nope")
    text = (await gateway.http.get("/metrics")).text
    assert 'puna_gateway_requests_total{model="m",op="chat",status="2xx"} 1.0' in text
    assert 'puna_gateway_refusals_total{code="model_not_found"}' in text
    assert 'puna_gateway_time_to_first_token_seconds_count{op="chat"} 1.0' in text
    assert 'puna_gateway_queue_seconds_count{op="chat"} 1.0' in text
    assert "puna_gateway_nodes 1.0" in text
    assert "puna_gateway_bus_sessions 1.0" in text


async def test_one_line_a_request_and_never_a_word_of_it(gateway, worker, caplog) -> None:
    caplog.set_level("DEBUG")
    asked = gateway.ask(stream=True, messages=[{"role": "user", "content": "PROMPT-SECRET"}])
    job = await worker.take()
    await job.answer("COMPLETION-SECRET")
    await asked
    lines = [record for record in caplog.records if getattr(record, "event", "") == "request"]
    assert len(lines) == 1
    assert vars(lines[0]).items() >= {"status": 200, "outcome": "ok", "node": "n1", "model": "m", "tries": 1}.items()
    everything = " ".join(str(vars(record)) for record in caplog.records if record.name != "httpx2")
    assert "SECRET" not in everything
