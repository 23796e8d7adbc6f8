"""What `puna up` shows of its fleet: heartbeats, joined with what it knows of its own children. Plain functions."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.cli.children import Child
from gateway.cli.folders import default_state_dir
from gateway.cli.tables import Row, engine_rows
from schemas.node import Heartbeat

_QUESTION: Final = "Explain in one sentence what a computer does."


@dataclass(frozen=True, slots=True)
class Facts:
    """The parts of a fleet that is up."""

    model: str
    nats: str
    nats_server: Child
    gateways: Mapping[str, Child]
    """By base URL."""
    workers: Sequence[Child]
    state_dir: Path


def facts_json(facts: Facts, nodes: Iterable[Heartbeat]) -> dict[str, Any]:
    """The one line of `puna up -o json`: the contract that scripts and tests start from."""
    http = {node.node: node.http for node in nodes}
    return {
        "gateway": next(iter(facts.gateways)),
        "nats": facts.nats,
        "model": facts.model,
        "nats_server": {"pid": facts.nats_server.pid},
        "gateways": [{"pid": child.pid, "url": url} for url, child in facts.gateways.items()],
        "workers": [{"node": child.name, "pid": child.pid, "http": http.get(child.name)} for child in facts.workers],
    }


def banner(facts: Facts) -> str:
    """What a person needs first: the address, a curl line and a Python program that work as printed."""
    url = next(iter(facts.gateways))
    more = "".join(f"          {other}/v1\n" for other in list(facts.gateways)[1:])
    elsewhere = f"export PUNA_STATE_DIR={shlex.quote(str(facts.state_dir))}; "
    where = "" if facts.state_dir == default_state_dir() else elsewhere
    return f"""
Puna is up: {url}/v1   model: {facts.model}
{more}
# in a shell
curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{
  "model": "{facts.model}", "stream": true, "temperature": 0, "max_tokens": 100,
  "messages": [{{"role": "user", "content": "{_QUESTION}"}}]}}'

# in Python, after pip install openai
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
messages = [{{"role": "user", "content": "{_QUESTION}"}}]
for chunk in client.chat.completions.create(
    model="{facts.model}", messages=messages, stream=True, temperature=0, max_tokens=100
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)

# or here: {where}puna run {facts.model} "{_QUESTION}"; puna ps; puna pull SOURCE; puna doctor
# state and logs: {facts.state_dir}   Ctrl-C ends everything
"""


def fleet_rows(nodes: Sequence[Heartbeat], workers: Sequence[Child], seen: set[str], now: float) -> list[Row]:
    """The live table: engines as nodes report them, and workers of ours that are down or silent."""
    down = {child.name: child for child in workers if child.pid is None}
    fresh = [node for node in nodes if node.node not in down and not _of_an_earlier_life(node, workers)]
    rows = [row | {"state": f"gone: {child.ended}"} for child in down.values() for row in [{"node": child.name}]]
    silent = {child.name for child in workers} - set(down) - {node.node for node in fresh}
    rows += [{"node": name, "state": "silent: no heartbeat" if name in seen else "starting"} for name in silent]
    return sorted(rows + engine_rows(fresh, now), key=lambda row: (str(row["node"]), str(row.get("model"))))


def _of_an_earlier_life(node: Heartbeat, workers: Sequence[Child]) -> bool:
    return any(child.name == node.node and node.pid not in (None, child.pid) for child in workers)


def all_ready(nodes: Sequence[Heartbeat], workers: Sequence[Child], model: str) -> bool:
    """Whether every worker of ours has said that its engine for the model is ready."""
    ready = {
        node.node
        for node in nodes
        if not _of_an_earlier_life(node, workers)
        and any(engine.model == model and engine.state == "ready" for engine in node.engines)
    }
    return all(child.name in ready for child in workers)


def changes(before: Mapping[str, str], rows: Sequence[Row]) -> tuple[dict[str, str], list[str]]:
    """For output that is no terminal: what is news, as lines. Slots and ages are not; states are."""
    after = {f"{row['node']} {row.get('model', '')}".strip(): str(row["state"]).split(",")[0] for row in rows}
    lines = [f"{name}: {state}" for name, state in after.items() if before.get(name) != state]
    told = {str(row["node"]) for row in rows}
    left = [name for name in before.keys() - after.keys() if name.split(" ")[0] not in told]
    return after, lines + [f"{name}: gone" for name in left]
