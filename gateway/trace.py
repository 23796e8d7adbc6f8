"""What is told of a stream: headers to its client, one log line to the operator, and why its time is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.router import not_in_time
from schemas.errors import DeadlineExceeded, PunaError

if TYPE_CHECKING:
    from gateway.stream import Stream


def queue_ms(stream: Stream, now: float) -> float:
    """From arrival to the worker's `accept`, milliseconds; so far, while it waits."""
    until = stream.accepted_at if stream.accepted_at is not None else now
    return (until - stream.ticket.arrived_at) * 1000


def add_headers(stream: Stream, now: float) -> None:
    """Add what is known by now to the answer's head, if that is not out yet."""
    if stream.answer.begun:
        return
    queued, total = queue_ms(stream, now), (now - stream.ticket.arrived_at) * 1000
    added = [("openai-processing-ms", f"{total:.0f}"), ("x-puna-queue-ms", f"{queued:.0f}")]
    if stream.node is not None:
        added.append(("x-puna-node", stream.node))
    added.append(("server-timing", f"queue;dur={queued:.1f}, total;dur={total:.1f}"))
    stream.answer.headers += added


def too_late(stream: Stream) -> PunaError:
    """The error of a request whose deadline has come: what it waited for."""
    ticket = stream.ticket
    waited_s = ticket.deadline_at - ticket.arrived_at
    if stream.node is None and stream.held is not None:
        return not_in_time(ticket.model, waited_s, stream.held)
    state = f"node {stream.node} was at work on it" if stream.node else "it still waited for a free slot"
    return DeadlineExceeded(f"the request's {waited_s:.3g} s have passed; {state}")


def facts(stream: Stream, now: float) -> dict[str, Any]:
    """For the request's one log line: never a word of its text."""
    ticket, first = stream.ticket, stream.first_data_at
    return {
        "request": ticket.request_id,
        "wire": ticket.wire_id,
        "op": ticket.op,
        "model": ticket.model,
        "lane": ticket.lane,
        "tenant": ticket.tenant,
        "stream": ticket.stream,
        "outcome": stream.outcome,
        "status": stream.answer.status or 499,
        "error": stream.error_code,
        "node": stream.node,
        "engine": stream.engine or None,
        "affinity": _affinity(stream),
        "tries": stream.tries,
        "queue_ms": round(queue_ms(stream, now), 1),
        "ttft_ms": round((first - ticket.arrived_at) * 1000, 1) if first is not None else None,
        "total_ms": round((now - ticket.arrived_at) * 1000, 1),
        "bytes_out": stream.bytes_out,
        "frames": stream.data_frames,
    }


def _affinity(stream: Stream) -> str | None:
    """Whether the conversation's own engine answered."""
    if stream.offer is not None:
        return "accepted" if stream.node is not None else "offered"
    return "fell back" if stream.epoch > stream.tries else None
