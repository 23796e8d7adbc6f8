"""`GET /sd/prometheus`: where the workers' metrics are, in the shape of Prometheus' HTTP service discovery."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from gateway.fleet import Fleet
from schemas.node import Heartbeat

_WILDCARDS: Final = frozenset(("0.0.0.0", "::"))  # noqa: S104  compared with, never listened on


def targets(fleet: Fleet) -> list[dict[str, Any]]:
    """One entry a node that lives and has an HTTP address. A worker that listens on every address is named by its node
    id, which is its host's name unless somebody chose another."""
    beats = sorted((one.beat for one in fleet.nodes.values()), key=lambda beat: beat.node)
    return [_target(beat, beat.http) for beat in beats if beat.http]


def _target(beat: Heartbeat, http: str) -> dict[str, Any]:
    parts = urlsplit(http)
    host = parts.hostname or beat.node
    host = beat.node if host in _WILDCARDS else host
    shown = f"[{host}]" if ":" in host else host
    port = parts.port or (443 if parts.scheme == "https" else 80)
    labels = {"node": beat.node, "__scheme__": parts.scheme or "http", "__meta_puna_version": beat.version}
    labels |= {"region": beat.region} if beat.region else {}
    return {"targets": [f"{shown}:{port}"], "labels": labels}
