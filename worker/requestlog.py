"""The one log line of a request: names and numbers, never what was asked or answered."""

from __future__ import annotations

import logging

from schemas.errors import PunaError
from worker.inference import Inference
from worker.work import Work

log = logging.getLogger("worker.serving")


def tell(work: Work, error: PunaError | None, facts: dict[str, object] | None = None) -> None:
    """Log how an attempt at a request ended here."""
    line: dict[str, object] = {
        "event": "request",
        "request": work.head.request_id,
        "epoch": work.head.epoch,
        "model": work.model,
        "op": work.head.op,
        "origin": work.origin,
        "tenant": work.head.tenant,
        "outcome": error.code if error else "ok",
    }
    log.info("request", extra=line | (facts or {}))


def facts_of(inference: Inference, engine: str) -> dict[str, object]:
    """What there is to tell of one that was in an engine. Times in milliseconds."""
    summary = inference.summary
    first_s = summary.first_data_s
    return {
        "engine": engine,
        "status": inference.status,
        "waited_ms": round(summary.waited_s * 1000, 1),
        "first_data_ms": None if first_s is None else round(first_s * 1000, 1),
        "total_ms": round(summary.total_s * 1000, 1),
        "bytes_out": inference.bytes_out,
    }
