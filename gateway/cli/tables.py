"""Rows of what the commands show, and how they are shown: table, wide table, JSON or YAML."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gateway.cli.amounts import bytes_text, count_text, left_text, seconds_text
from gateway.cli.copies import copy_text
from schemas.model import CopyRecord
from schemas.node import Device, Engine, Heartbeat, Offer, Share

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]
_STYLES = {"ready": "green", "starting": "yellow", "stopping": "yellow", "crashed": "red", "gone": "red"} | {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "silent": "red",
    "cold": "dim",
    "downloading": "yellow",
    "verifying": "yellow",
    "updating": "yellow",
    "pending": "yellow",
    "wanted": "yellow",
    "loading": "yellow",
    "deleting": "yellow",
    "running": "yellow",
    "retrying": "yellow",
    "failed": "red",
    "dead": "red",
    "unavailable": "red",
    "away": "red",
    "done": "green",
    "deleted": "green",
}


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


ENGINE_COLUMNS = ("node", "model", "engine", "device", "state", "slots", "memory", "marks", "since")
ENGINE_WIDE = (*ENGINE_COLUMNS, "pid", "context", "load s")
NODE_COLUMNS = ("node", "state", "devices", "models", "slots", "since")
NODE_HOST = ("engine", "host", "http", "pid")
NODE_LOAD = ("memory free", "waiting", "done", "failed", "tokens/s")
NODE_WIDE = (*NODE_COLUMNS, "shares", "version", "arch", *NODE_LOAD, *NODE_HOST)
MODEL_COLUMNS = ("model", "state", "size", "quant", "copies", "nodes", "slots", "source")
MODEL_WIDE = (*MODEL_COLUMNS, "context", "parameters", "architecture", "can", "record")


def engine_rows(nodes: Iterable[Heartbeat], now: float | None = None, coming: Iterable[CopyRecord] = ()) -> list[Row]:
    """One row an engine, one for each copy that is on its way, and one for each model that a node could start; a node
    that has none of them says so."""
    now = time.time() if now is None else now
    copies: defaultdict[str, list[CopyRecord]] = defaultdict(list)
    for copy in coming:
        copies[copy.node].append(copy)
    rows: list[Row] = []
    for node in nodes:
        rows += [_engine_row(node, engine, now) for engine in node.engines]
        rows += [copy_row(copy, now) for copy in copies[node.node]]
        cold = [offer for offer in node.offers if all(engine.model != offer.model for engine in node.engines)]
        rows += [_cold_row(node, offer) for offer in cold]
        if not node.engines and not cold and not copies[node.node]:
            rows.append(
                {"node": node.node, "model": "-", "state": "no engine", "since": seconds_text(now - node.started_at)}
            )
    return rows


def _engine_row(node: Heartbeat, engine: Engine, now: float) -> Row:
    return {
        "node": node.node,
        "model": engine.model,
        "device": ",".join(engine.devices),
        "state": state_of(engine, now),
        "slots": f"{engine.slots_busy}/{engine.slots_total}",
        "since": seconds_text(now - engine.since),
        "engine": engine.engine,
        "memory": bytes_shown(engine.memory_measured_bytes or engine.memory_planned_bytes),
        "marks": ", ".join(marks_of(engine)),
        "pid": engine.pid,
        "context": engine.capabilities.context_tokens,
        "load s": None if engine.load_seconds is None else round(engine.load_seconds, 1),
    }


def _cold_row(node: Heartbeat, offer: Offer) -> Row:
    """A model on the node's disk without an engine: it starts when it is asked for, if its offer has a cost."""
    state = "cold" if offer.cost is not None else f"cold: {offer.reason or 'not now'}"
    return {
        "node": node.node,
        "model": offer.model,
        "device": ",".join(offer.devices),
        "state": state,
        "memory": bytes_shown(offer.needed_bytes),
        "load s": None if offer.load_seconds is None else round(offer.load_seconds, 1),
    }


def marks_of(engine: Engine) -> list[str]:
    """What is special about an engine, in a word each."""
    marks = {
        "pinned": engine.pinned,
        "adopted": engine.adopted,
        "yielding": engine.yielding,
        "breaker": engine.breaker_open,
        "unfit": engine.unfit,
    }
    return [name for name, on in marks.items() if on]


def state_of(engine: Engine, now: float) -> str:
    """The engine's state with all that is known of why, how far, and when it is tried again."""
    more = [engine.reason] if engine.reason and engine.state != "ready" else []
    if engine.progress is not None and engine.state == "starting":
        more.append(f"{engine.progress:.0%}")
    if engine.next_retry_at is not None:
        more.append(f"next try in {seconds_text(max(0.0, engine.next_retry_at - now))}")
    return f"{engine.state}: {', '.join(more)}" if more else engine.state


def node_rows(nodes: Iterable[Heartbeat], now: float | None = None) -> list[Row]:
    """One row a node."""
    now = time.time() if now is None else now
    return [
        {
            "node": node.node,
            "state": "draining" if node.draining else "up",
            "devices": ", ".join(_device(device) for device in node.devices),
            "models": ", ".join(sorted({engine.model for engine in node.engines})) or "-",
            "slots": f"{sum(e.slots_busy for e in node.engines)}/{sum(e.slots_total for e in node.engines)}",
            "since": seconds_text(now - node.started_at),
            "shares": ", ".join(_share(kind, share) for kind, share in node.shares.items()),
            "version": node.version,
            "arch": node.architecture,
            "memory free": ", ".join(bytes_text(device.memory_free_bytes) for device in node.devices),
            "waiting": node.pressure.waiting,
            "done": node.pressure.completed_total,
            "failed": node.pressure.failed_total,
            "tokens/s": f"{node.pressure.tokens_per_s:.1f}",
            "engine": f"{node.engine_program} {node.engine_build or ''}".strip() if node.engine_program else "-",
            "host": node.host or "-",
            "http": node.http,
            "pid": node.pid,
        }
        for node in nodes
    ]


def _device(device: Device) -> str:
    return f"{device.device} ({device.name})" if device.name else device.device


def _share(kind: str, share: Share) -> str:
    """What is available of what there is: `cuda.mem 10.2 GB/24.0 GB`, `cpu 3/8`."""
    if kind.split(".")[-1] == "mem":
        return f"{kind} {bytes_text(int(share.available))}/{bytes_text(int(share.total))}"
    return f"{kind} {share.available:f}/{share.total:f}"


def copy_row(copy: CopyRecord, now: float) -> Row:
    """A model's files on their way to a node, with a bar, the speed and the time that it will still take."""
    total = copy.size_bytes or copy.progress.bytes_total
    return {
        "node": copy.node,
        "model": copy.model,
        "state": copy_text(copy, now, cells=10),
        "memory": None,
        "since": seconds_text(now - copy.since),
        "size": bytes_shown(total),
    }


def model_rows(entries: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row a model, out of what `/v1/models` says of it."""
    return [_model_row(entry) for entry in entries]


def _model_row(entry: Mapping[str, Any]) -> Row:
    about, copies, puna = entry["meta"], entry["copies"], entry["puna"]
    size = entry["size_bytes"] or about["size"]
    return {
        "model": entry["id"],
        "state": _model_state(entry),
        "size": bytes_shown(size),
        "quant": entry["quantisation"],
        "copies": _copies_shown(copies),
        "nodes": ", ".join(puna["nodes"]),
        "slots": f"{puna['slots_busy']}/{puna['slots_total']}",
        "source": entry["source"],
        "context": entry["context"],
        "parameters": None if entry["parameters"] is None else count_text(entry["parameters"]),
        "architecture": about["architecture"],
        "can": ", ".join(entry["capabilities"]),
    }


def _model_state(entry: Mapping[str, Any]) -> str:
    """With the reason, how far and how long still; a cold model that can be started needs none."""
    state = "cold" if entry["state"] == "unloaded" else entry["state"]
    if state == "ready":
        return state
    told = [entry["reason"]] if entry["reason"] and state != "cold" else []
    told += [f"{entry['progress']:.0%}"] if entry["progress"] is not None else []
    told += [f"{left_text(entry['eta_s'])} left"] if entry["eta_s"] is not None and state != "cold" else []
    return f"{state}: {', '.join(told)}" if told else state


def _copies_shown(copies: Mapping[str, Any] | None) -> str | None:
    if copies is None:
        return None
    return f"{copies['ready']}/{copies['wanted']}" if copies["wanted"] is not None else str(copies["ready"])


def table(rows: Sequence[Row], columns: Sequence[str]) -> Table:
    """A table for people."""
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        out.add_column(column.upper(), overflow="fold")
    for row in rows:
        cells = ["" if row.get(column) is None else str(row[column]) for column in columns]
        styles = [
            _STYLES.get(cell.split(":")[0], "") if name == "state" else ""
            for name, cell in zip(columns, cells, strict=True)
        ]
        out.add_row(*(Text(cell, style) for cell, style in zip(cells, styles, strict=True)))
    return out


def console(*, stderr: bool = False) -> Console:
    """A console that keeps tables whole where nobody looks at them on a terminal. `NO_COLOR` is honoured."""
    from rich.console import Console

    out = Console(stderr=stderr, highlight=False)
    return out if out.is_terminal else Console(stderr=stderr, highlight=False, width=240)


def show(data: object, rows: Sequence[Row], columns: Sequence[str], wide: Sequence[str], how: Format) -> None:
    """Print to stdout: `data` whole as JSON or YAML, or `rows` as a table."""
    if how is Format.JSON:
        print(json.dumps(data, ensure_ascii=False), flush=True)
    elif how is Format.YAML:
        import yaml

        yaml.safe_dump(data, sys.stdout, sort_keys=False, allow_unicode=True)
    else:
        console().print(table(rows, wide if how is Format.WIDE else columns))


def bytes_shown(count: int | None) -> str | None:
    """A number of bytes for people."""
    return None if count is None else bytes_text(count)
