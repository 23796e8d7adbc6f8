"""Streams, buckets and consumers: what a fleet needs is made, what differs is changed, what is right is left alone.

Many processes do this at the same moment. So nothing is locked: look, create or update, and when somebody else was
faster, look again. Settings that Puna does not name (an operator's placement, compression, republish…) stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, cast

from bus.connection import Bus
from bus.errors import JetStreamError, NoStream
from schemas.errors import PunaError
from schemas.topology import ConsumerSpec, Topology

log = logging.getLogger(__name__)

CONSUMER_NOT_FOUND: Final = 10014
STREAM_NOT_FOUND: Final = 10059
_MESSAGE_NOT_FOUND: Final = (10037, 10043)
_NAME_TAKEN: Final = (10058, 10013, 10105, 10148)
_MISSING_FOR_UPDATE: Final = 10149
_OVERLAP: Final = 10065
_NO_ROOM: Final = (10023, 10028, 10047)
_NOT_ENABLED: Final = (10039, 10076)
_RACES: Final = 5
_UNORDERED: Final = ("subjects", "filter_subjects", "priority_groups")
_API_TIMEOUT_S: Final = 5.0

Config = dict[str, Any]


class TopologyRefused(PunaError):
    """The server will not make a stream or consumer as Puna needs it. The message names it and says what to do."""

    code = "topology_refused"


async def ensure(bus: Bus, topology: Topology) -> None:
    """Make the server agree with `topology`; what agrees already is not touched. Idempotent, safe for many at once.

    Raises `TopologyRefused` when a person has to act, `BusUnavailable` when the server cannot be asked now.
    """
    specs = (*topology.streams, *topology.buckets, *topology.blobs)
    tasks = (_ensure_stream(bus, spec.config()) for spec in specs)
    failures = [found for found in await asyncio.gather(*tasks, return_exceptions=True) if found is not None]
    if failures:  # all have ended by now; a refusal, which a person must mend, is told before what passes by itself
        raise next((failure for failure in failures if isinstance(failure, TopologyRefused)), failures[0])


async def ensure_consumer(bus: Bus, spec: ConsumerSpec) -> str:
    """Make or change one durable consumer. Returns when it was created, as the server writes it: its identity.

    Raises `NoStream` if its stream is missing, `TopologyRefused`, `BusUnavailable`.
    """
    wanted, what = spec.config(), f"consumer {spec.durable} of stream {spec.stream}"
    try:
        for _ in range(_RACES):
            info = await consumer_info(bus, spec.stream, spec.durable)
            if info is None:
                info = await _write_consumer(bus, spec.stream, wanted, "create")
            elif changes := differences(wanted, info["config"]):
                _log_change("consumer", spec.durable, changes)
                info = await _write_consumer(bus, spec.stream, info["config"] | wanted, "update")
            if info is not None:
                return str(info["created"])
    except JetStreamError as error:
        raise _explained(error, what, {}, _consumer_remedy(spec)) from error
    raise _unsettled(what)


async def delete_message(bus: Bus, stream: str, sequence: int) -> bool:
    """Take one message out of a stream. False if it is not there (any more), nor the stream itself."""
    try:
        await bus.js_api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
    except NoStream:
        return False
    except JetStreamError as error:
        if error.err_code in (*_MESSAGE_NOT_FOUND, STREAM_NOT_FOUND):
            return False
        raise
    return True


async def waiting(bus: Bus, stream: str, subject_filter: str) -> Mapping[str, int]:
    """Messages stored per subject, those handed out and not acknowledged among them; needs no consumer.

    One call for all lines. A stream that does not exist holds nothing.
    """
    info = await stream_info(bus, stream, subjects_filter=subject_filter)
    return {} if info is None else cast("dict[str, int]", info["state"].get("subjects") or {})


async def stream_info(bus: Bus, stream: str, *, subjects_filter: str | None = None) -> Config | None:
    """The server's description of a stream, or None if there is none. At most 100,000 subjects."""
    body = {"subjects_filter": subjects_filter} if subjects_filter else None
    try:
        return await bus.js_api(f"STREAM.INFO.{stream}", body, timeout_s=_API_TIMEOUT_S)
    except NoStream:
        return None
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return None
        raise


async def consumer_info(bus: Bus, stream: str, consumer: str) -> Config | None:
    """The server's description of a consumer, or None if there is none. Raises `NoStream`."""
    try:
        return await bus.js_api(f"CONSUMER.INFO.{stream}.{consumer}", timeout_s=_API_TIMEOUT_S)
    except JetStreamError as error:
        if error.err_code == CONSUMER_NOT_FOUND:
            return None
        raise _no_stream_or(error, stream) from error


async def _ensure_stream(bus: Bus, wanted: Config) -> None:
    name: str = wanted["name"]
    changes: Mapping[str, str] = {}
    try:
        for _ in range(_RACES):
            info = await stream_info(bus, name)
            if info is None:
                if await _create_stream(bus, wanted):
                    return
                continue
            changes = differences(wanted, info["config"])
            if not changes:
                return
            _log_change("stream", name, changes)
            await bus.js_api(f"STREAM.UPDATE.{name}", info["config"] | wanted, timeout_s=_API_TIMEOUT_S)
            return
    except JetStreamError as error:
        raise _explained(error, f"stream {name}", changes, _stream_remedy(error, name)) from error
    raise _unsettled(f"stream {name}")


async def _create_stream(bus: Bus, wanted: Config) -> bool:
    """False when another process made it meanwhile, with other settings."""
    try:
        await bus.js_api(f"STREAM.CREATE.{wanted['name']}", wanted, timeout_s=_API_TIMEOUT_S)
    except JetStreamError as error:
        if error.err_code in _NAME_TAKEN:
            return False
        raise
    log.info("stream made", extra={"event": "bus.stream_made", "stream": wanted["name"]})
    return True


async def _write_consumer(bus: Bus, stream: str, config: Config, action: str) -> Config | None:
    """None when another process was faster, or the consumer to update is gone: look again."""
    api = f"CONSUMER.CREATE.{stream}.{config['name']}.{config['filter_subject']}"
    body = {"stream_name": stream, "config": config, "action": action}
    try:
        return await bus.js_api(api, body, timeout_s=_API_TIMEOUT_S)
    except JetStreamError as error:
        if error.err_code in (*_NAME_TAKEN, CONSUMER_NOT_FOUND, _MISSING_FOR_UPDATE):
            return None
        raise _no_stream_or(error, stream) from error


def differences(wanted: Mapping[str, Any], actual: Mapping[str, Any]) -> dict[str, str]:
    """What has to change: setting → `now → wanted`. Only what is wanted counts; a default may be left out by either."""
    return {
        key: f"{actual.get(key)} → {value}"
        for key, value in wanted.items()
        if _normal(key, actual.get(key)) != _normal(key, value)
    }


def _normal(key: str, value: Any) -> Any:
    if key in _UNORDERED and value:
        return sorted(value)
    return value or None  # the server leaves out what is zero, false or empty


def _log_change(kind: str, name: str, changes: Mapping[str, str]) -> None:
    detail = {"event": f"bus.{kind}_changed", "stream": name, "changes": _listed(changes)}
    log.info("%s changed", kind, extra=detail)


def _listed(changes: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {change}" for key, change in changes.items())


def _no_stream_or(error: JetStreamError, stream: str) -> PunaError:
    return NoStream(f"stream {stream} does not exist") if error.err_code == STREAM_NOT_FOUND else error


def _explained(error: JetStreamError, what: str, changes: Mapping[str, str], remedy: str) -> PunaError:
    """The server's no as a message for a person; a no that may be a yes later stays what it is."""
    if error.status == 503 and error.err_code not in _NOT_ENABLED:
        return error
    differing = f" Different: {_listed(changes)}." if changes else ""
    return TopologyRefused(f"NATS refuses {what}: {error.description} ({error.err_code}).{differing} {remedy}")


def _stream_remedy(error: JetStreamError, name: str) -> str:
    if error.err_code in _NOT_ENABLED:
        return "Turn JetStream on: start nats-server with -js, and let this account use it."
    if error.err_code == _OVERLAP:
        return "Another stream takes the same subjects: `nats stream ls -a` shows it; remove it or set PUNA_PREFIX."
    if error.err_code in _NO_ROOM:
        return "Raise max_memory_store, max_file_store or the account's limits on the NATS server."
    return (
        f"Some settings cannot be changed in place: when nothing in it is needed any more, "
        f"`nats stream rm {name}` and start again, or use another PUNA_PREFIX."
    )


def _consumer_remedy(spec: ConsumerSpec) -> str:
    return f"`nats consumer rm {spec.stream} {spec.durable}` loses no message; Puna makes it anew."


def _unsettled(what: str) -> TopologyRefused:
    return TopologyRefused(f"{what} was made and removed by others {_RACES} times in a row; stop what removes it")
