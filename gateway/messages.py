"""The messages of the tasks stream and of the dead letters, read one by one."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bus.connection import Bus

MESSAGES_LIMIT: Final = 10_000
_NO_MESSAGE: Final = 10037


@dataclass(frozen=True, slots=True)
class Stored:
    """One message. `at`: Unix seconds by the server's clock."""

    sequence: int
    subject: str
    payload: bytes
    at: float


async def messages(bus: Bus, stream: str, subjects: str) -> AsyncIterator[Stored]:
    """What is in the stream now, the oldest first, at most `MESSAGES_LIMIT`. Raises `BusUnavailable`."""
    sequence = 1
    for _ in range(MESSAGES_LIMIT):
        found = await message(bus, stream, {"seq": sequence, "next_by_subj": subjects})
        if found is None:
            return
        yield found
        sequence = found.sequence + 1


async def message(bus: Bus, stream: str, which: dict[str, Any]) -> Stored | None:
    """One message; None if there is none such, or no stream."""
    from bus.errors import JetStreamError
    from bus.topology import STREAM_NOT_FOUND

    try:
        found = (await bus.js_api(f"STREAM.MSG.GET.{stream}", which))["message"]
    except JetStreamError as error:
        if error.err_code in (_NO_MESSAGE, STREAM_NOT_FOUND):
            return None
        raise
    data = base64.b64decode(found.get("data") or "")
    return Stored(int(found["seq"]), str(found["subject"]), data, datetime.fromisoformat(found["time"]).timestamp())
