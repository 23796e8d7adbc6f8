"""What probes ask. None needs a key, none tells anything of the fleet but whether it can serve."""

from __future__ import annotations

from typing import Any

from gateway.fleet import Fleet

Verdict = tuple[int, dict[str, Any]]


def alive() -> Verdict:
    """The process runs its loop."""
    return 200, {"status": "ok"}


def ready(connected: bool, fleet: Fleet, stopping: bool) -> Verdict:
    """Requests can be taken: connected, and the fleet's state is known."""
    problems = [
        text
        for text, wrong in (
            ("NATS is not connected", not connected),
            ("the fleet is not known yet", not fleet.whole),
            ("shutting down", stopping),
        )
        if wrong
    ]
    return (503, {"status": "unavailable", "reason": "; ".join(problems)}) if problems else (200, {"status": "ok"})


def serving(connected: bool, fleet: Fleet, stopping: bool) -> Verdict:
    """`/health` in llama-server's shape: ok once some model can answer, be it after a load."""
    status, told = ready(connected, fleet, stopping)
    if status != 200:
        return 503, _llama(str(told["reason"]))
    states = [model.state for model in fleet.models.values()]
    if "ready" in states or "unloaded" in states:
        return 200, {"status": "ok"}
    return 503, _llama("Loading model" if "loading" in states else "no node serves a model")


def _llama(message: str) -> dict[str, Any]:
    return {"error": {"code": 503, "message": message, "type": "unavailable_error"}}
