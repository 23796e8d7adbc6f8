"""What a program tells the service manager that started it: systemd's `Type=notify` and `WatchdogSec=`.

Without one (`NOTIFY_SOCKET` is unset) nothing is told. The variables are taken out of the environment, so that a
program's own children, engines above all, do not speak for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final

log = logging.getLogger(__name__)

_ADDRESS: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"
_WATCHED: Final = "WATCHDOG_PID"
_PINGS_A_LIMIT: Final = 3
"""The manager ends a program that it has not heard for the limit; one ping may be lost."""


class Notifier:
    """Tells the service manager. A manager that does not listen is logged once, and nothing else comes of it."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        """The manager ends this program when it has not heard of it for so long; None: it does not."""
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._told_failure = False

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """As systemd asks for it, and out of the environment."""
        address, limit, pid = (environ.pop(name, "") for name in (_ADDRESS, _WATCHDOG, _WATCHED))
        ours = pid in ("", str(os.getpid())) and limit.isdigit() and int(limit) > 0
        return cls(address or None, int(limit) / 1e6 if ours else None)

    def ready(self) -> None:
        """Requests can be taken."""
        self._tell("READY=1")

    def stopping(self, within_s: float) -> None:
        """It ends, and needs at most so long for that."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    async def keep_alive(self, lives: Callable[[], bool]) -> None:
        """Tell that the program lives for as long as it does, until cancelled. A loop that hangs tells nothing."""
        if self._address is None or self.watchdog_s is None:
            return
        while True:
            if lives():
                self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / _PINGS_A_LIMIT)

    def _tell(self, text: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_manager:
                to_manager.setblocking(False)
                to_manager.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._told_failure:
                log.warning("service_manager_deaf", extra={"event": "service_manager_deaf", "error": str(error)})
            self._told_failure = True
