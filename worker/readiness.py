"""Is it our engine that answers there, and is it ready? Ports are used again: whoever listens may be a stranger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import orjson

from schemas.node import Capabilities
from web.call import CallFailed
from web.client import Client

PROBE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Probe:
    """What one look showed. `detail` says why for `stranger`, or what is being waited for."""

    verdict: Literal["ready", "loading", "silent", "stranger"]
    detail: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)


async def probe(client: Client, model: str) -> Probe:
    """Look once. `ready` only after `/health` says so and `/v1/models`, asked with our key, serves `model`."""
    try:
        health = await client.fetch("GET", "/health", timeout_s=PROBE_TIMEOUT_S)
        if health.status != 200:
            return Probe("loading", f"its /health says {health.status}")
        models = await client.fetch("GET", "/v1/models", timeout_s=PROBE_TIMEOUT_S)
        props = await client.fetch("GET", "/props", timeout_s=PROBE_TIMEOUT_S)
    except CallFailed as error:
        return Probe("silent", str(error))
    if 503 in (models.status, props.status):
        return Probe("loading", "it is up and loads the model")
    if props.status in (401, 403):  # asked too, for some engines tell their models to anybody
        return Probe("stranger", f"another server answers on its port (it refused our key with {props.status})")
    if models.status != 200:
        return Probe("stranger", f"another server answers on its port (its /v1/models says {models.status})")
    return _judge(models.body, props.body, model)


def _judge(body: bytes, props: bytes, model: str) -> Probe:
    try:
        entries = cast(list[dict[str, Any]], orjson.loads(body)["data"])
        mine = next((entry for entry in entries if entry["id"] == model or model in entry.get("aliases", ())), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Probe("stranger", "another server answers on its port (its /v1/models is not an engine's)")
    if mine is None:
        return Probe("stranger", "another engine answers on its port (it serves a different model)")
    return Probe("ready", capabilities=_capabilities(mine.get("meta"), props))


def _capabilities(meta: object, props: bytes) -> Capabilities:
    known = cast(dict[str, Any], meta) if isinstance(meta, dict) else {}
    numbers = {name: value for name, value in known.items() if isinstance(value, int)}
    return Capabilities(
        context_tokens=_slot_context(props) or numbers.get("n_ctx_train"),
        parameters=numbers.get("n_params"),
        size_bytes=numbers.get("size"),
    )


def _slot_context(props: bytes) -> int | None:
    """Tokens that one slot holds: what a request may use."""
    try:
        context = orjson.loads(props)["default_generation_settings"]["n_ctx"]
    except (ValueError, KeyError, TypeError):
        return None
    return context if isinstance(context, int) else None
