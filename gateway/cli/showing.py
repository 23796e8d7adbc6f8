"""`puna show MODEL`: what the model is, where its files are, what it would take, and what is wanted of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.cli.amounts import bytes_text, count_text, left_text, progress_text, seconds_text
from gateway.cli.exits import NOT_FOUND, OK, CliError
from gateway.cli.nodes import connected
from gateway.cli.records import read_moment
from gateway.cli.tables import Format, Row, console, show, table
from gateway.cli.target import Target
from schemas.errors import ModelNotFound
from schemas.model import CopyProgress
from schemas.node import Heartbeat

_COPY_COLUMNS: Final = ("node", "state", "since", "size", "revision", "why")
_MEMORY_COLUMNS: Final = ("node", "engine", "needs", "free", "why")
Told = Mapping[str, Any]


async def run_show(target: Target, model: str, how: Format) -> int:
    """Returns the exit code. Raises `CliError`, `BusUnavailable`."""
    told, beats = await _read(target, model)
    memory = memory_rows(model, beats)
    data = {**told, "memory": memory}
    if how in (Format.JSON, Format.YAML):
        show(data, [], (), (), how)
        return OK
    out = console()
    for name, value in facts(told).items():
        out.print(f"{name:<13} {value}", markup=False, highlight=False, soft_wrap=True)
    held: Told = told.get("copies") or {}
    copies = copy_rows(held.get("each", []), time.time())
    for title, rows, columns in (("copies", copies, _COPY_COLUMNS), ("memory", memory, _MEMORY_COLUMNS)):
        if rows:
            out.print(f"\n{title}", style="bold")
            out.print(table(_shown(rows), columns))
    return OK


async def _read(target: Target, model: str) -> tuple[dict[str, Any], list[Heartbeat]]:
    if target.gateway and not target.nats:
        return await asyncio.to_thread(_by_gateway, target, model)
    from gateway import models

    async with connected(target.nats_settings()) as bus:
        moment = await read_moment(bus)
    try:
        return models.one(moment, model), [one.beat for one in moment.fleet.nodes.values()]
    except ModelNotFound as error:
        raise CliError(f"there is no model {model!r}; see `puna ls`", NOT_FOUND) from error


def _by_gateway(target: Target, model: str) -> tuple[dict[str, Any], list[Heartbeat]]:
    from gateway.cli.httpclient import GatewayHttp

    http = GatewayHttp(target.gateway_url(), target.key())
    told: dict[str, Any] = http.get(f"/v1/models/{model}")
    return told, [Heartbeat.model_validate(each) for each in http.get("/v1/nodes")["data"] if each["state"] != "gone"]


def facts(told: Told) -> dict[str, str]:
    """What there is to say of the model itself, in words."""
    about: Told = told.get("meta") or {}
    record: Told = told.get("record") or {}
    file: Told = told.get("file") or {}
    state = str(told["state"]) + (f": {told['reason']}" if told.get("reason") else "")
    if told.get("progress") is not None:
        state += f", {told['progress']:.0%}"
    if told.get("eta_s") is not None:
        state += f", about {left_text(told['eta_s'])} to go"
    found = {
        "model": told["id"],
        "state": state,
        "source": told.get("source"),
        "size": bytes_text(told["size_bytes"]) if told.get("size_bytes") else None,
        "architecture": about.get("architecture"),
        "parameters": count_text(told["parameters"]) if told.get("parameters") else None,
        "quantisation": told.get("quantisation"),
        "context": _context(about),
        "template": _template(told),
        "capabilities": ", ".join(told.get("capabilities") or []),
        "interfaces": ", ".join(file.get("api_capabilities") or []),
        "shape": _shape(file),
        "takes": _takes(file),
        "copies": _copies(told.get("copies")),
        "record": _record(record),
        "profile": _pairs(record.get("profile") or {}),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _context(about: Told) -> str | None:
    used, trained = about.get("n_ctx"), about.get("n_ctx_train")
    if used is None or used == trained:
        return f"{trained} tokens" if trained else None
    return f"{used} tokens a request" + (f" of {trained} that it was made for" if trained else "")


def _shape(file: Told) -> str:
    names = {"layers": "layers", "embedding_length": "wide", "vocabulary": "tokens known"}
    return ", ".join(f"{file[name]} {word}" for name, word in names.items() if file.get(name))


def _takes(file: Told) -> str | None:
    """What its file lets expect; where an engine runs, the table of memory says more."""
    if not file.get("memory_bytes"):
        return None
    text = f"about {bytes_text(file['memory_bytes'])} of memory, one slot of {file.get('memory_context_tokens')} tokens"
    each = file.get("cache_bytes_per_token")
    return text + (f", {bytes_text(each)} a further token" if each else "")


def _template(told: Told) -> str | None:
    has = told.get("chat_template")
    return None if has is None else "chat template" if has else "no chat template"


def _copies(copies: Told | None) -> str | None:
    if copies is None:
        return None
    wanted = f" of {copies['wanted']} wanted" if copies.get("wanted") is not None else ""
    return f"{copies['ready']} ready{wanted}"


def _record(record: Told) -> str | None:
    if not record:
        return "none: a task brought it, and it stays until it is deleted or room is needed"
    told = [f"generation {record.get('generation', 1)}", f"policy {record.get('policy', 'reuse_if_exists')}"]
    placement: Told = record.get("placement") or {}
    told.append(f"copies {placement.get('copies', 1)}")
    selector: Told = placement.get("selector") or {}
    told += [f"on nodes with {_pairs(selector['labels'])}"] if selector.get("labels") else []
    told += [f"{len(selector['terms'])} terms"] if selector.get("terms") else []
    told += [f"revision {record['revision']}"] if record.get("revision") else []
    told += [f"{len(record['variants'])} variants"] if record.get("variants") else []
    return ", ".join(told) + (", deleting" if record.get("deleting") else "")


def _pairs(found: Told) -> str:
    return ", ".join(f"{name}={value}" for name, value in found.items() if value not in (None, False, {}, []))


def copy_rows(copies: Sequence[Told], now: float) -> list[Row]:
    """One row a node that has it, or is to have it."""
    return [
        {
            "node": copy["node"],
            "state": copy["state"] if copy.get("node_lives", True) else f"{copy['state']} (node is away)",
            "since": seconds_text(now - copy["since"]),
            "size": bytes_text(copy["size_bytes"]) if copy.get("size_bytes") else None,
            "revision": str(copy["revision"])[:16] if copy.get("revision") else None,
            "why": _why(copy, now),
        }
        for copy in copies
    ]


def _why(copy: Told, now: float) -> str:
    progress = CopyProgress.model_validate(copy.get("progress") or {})
    if not copy.get("node_lives", True):
        progress = progress.model_copy(update={"speed_bytes_per_s": None, "eta_s": None})
    told = [progress_text(progress)] if copy.get("progress") else []
    told += [copy["reason"]] if copy.get("reason") else []
    retry_at = copy.get("next_retry_at")
    told += [f"next try in {left_text(retry_at - now)}" if retry_at > now else "next try now"] if retry_at else []
    return ", ".join(told)


def memory_rows(model: str, beats: Sequence[Heartbeat]) -> list[Row]:
    """What it takes where it runs, and what one more engine would take where its files are."""
    rows: list[Row] = []
    for beat in beats:
        for engine in beat.engines:
            if engine.model == model:
                used = engine.memory_measured_bytes or engine.memory_planned_bytes
                measured = "measured" if engine.memory_measured_bytes else "planned"
                why = f"{measured}; {engine.memory_plan}" if engine.memory_plan else measured
                rows.append({"node": beat.node, "engine": engine.engine, "needs": used, "free": None, "why": why})
        for offer in beat.offers:
            if offer.model == model:
                why = offer.reason or f"one more on {', '.join(offer.devices)}, cost {offer.cost}"
                needs, free = offer.needed_bytes, offer.free_bytes
                rows.append({"node": beat.node, "engine": "one more", "needs": needs, "free": free, "why": why})
    return rows


def _shown(rows: Sequence[Row]) -> list[Row]:
    def cell(name: str, value: Any) -> Any:
        return bytes_text(value) if name in ("needs", "free") and isinstance(value, int) else value

    return [{name: cell(name, value) for name, value in row.items()} for row in rows]
