"""Rows of what the commands show, and how they are shown: table, wide table, JSON or YAML."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

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
NODE_WIDE = (*NODE_COLUMNS, "shares", "version", "arch", "memory free", "waiting", "done", "failed", "http", "pid")
MODEL_COLUMNS = ("model", "state", "nodes", "slots")
MODEL_WIDE = (*MODEL_COLUMNS, "context", "parameters", "size")


def engine_rows(nodes: Iterable[Heartbeat], now: float | None = None) -> list[Row]:
    """One row an engine, and one for each model that a node could start; a node that has neither says so."""
    now = time.time() if now is None else now
    rows: list[Row] = []
    for node in nodes:
        rows += [_engine_row(node, engine, now) for engine in node.engines]
        cold = [offer for offer in node.offers if all(engine.model != offer.model for engine in node.engines)]
        rows += [_cold_row(node, offer) for offer in cold]
        if not node.engines and not cold:
            rows.append({"node": node.node, "model": "-", "state": "no engine", "since": _ago(now - node.started_at)})
    return rows


def _engine_row(node: Heartbeat, engine: Engine, now: float) -> Row:
    return {
        "node": node.node,
        "model": engine.model,
        "device": ",".join(engine.devices),
        "state": state_of(engine, now),
        "slots": f"{engine.slots_busy}/{engine.slots_total}",
        "since": _ago(now - engine.since),
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
        more.append(f"next try in {_ago(max(0.0, engine.next_retry_at - now))}")
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
            "since": _ago(now - node.started_at),
            "shares": ", ".join(_share(kind, share) for kind, share in node.shares.items()),
            "version": node.version,
            "arch": node.architecture,
            "memory free": ", ".join(_bytes(device.memory_free_bytes) for device in node.devices),
            "waiting": node.pressure.waiting,
            "done": node.pressure.completed_total,
            "failed": node.pressure.failed_total,
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
        return f"{kind} {_bytes(int(share.available))}/{_bytes(int(share.total))}"
    return f"{kind} {share.available:f}/{share.total:f}"


def model_rows(nodes: Iterable[Heartbeat]) -> list[Row]:
    """One row a model, over all nodes; a model without an engine is cold, on the disk of the nodes named."""
    engines: defaultdict[str, list[tuple[str, Engine]]] = defaultdict(list)
    disks: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for engine in node.engines:
            engines[engine.model].append((node.node, engine))
        for offer in node.offers:
            disks[offer.model].append(node.node)
    rows = [_model_row(model, held) for model, held in engines.items()]
    rows += [
        {"model": model, "state": "cold", "nodes": ", ".join(sorted(on)), "slots": "0/0"}
        for model, on in disks.items()
        if model not in engines
    ]
    return sorted(rows, key=lambda row: str(row["model"]))


def _model_row(model: str, held: Sequence[tuple[str, Engine]]) -> Row:
    ready = [engine for _, engine in held if engine.state == "ready"]
    about = (ready or [engine for _, engine in held])[0].capabilities
    return {
        "model": model,
        "state": "ready" if ready else held[0][1].state,
        "nodes": ", ".join(sorted({node for node, _ in held})),
        "slots": f"{sum(e.slots_busy for e in ready)}/{sum(e.slots_total for e in ready)}",
        "context": about.context_tokens,
        "parameters": about.parameters,
        "size": None if about.size_bytes is None else _bytes(about.size_bytes),
    }


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


def _ago(seconds: float) -> str:
    whole = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= length:
            return f"{whole // length}{unit}"
    return f"{whole}s"


def bytes_shown(count: int | None) -> str | None:
    """A number of bytes for people."""
    return None if count is None else _bytes(count)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
