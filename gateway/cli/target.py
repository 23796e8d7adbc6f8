"""Which fleet a command talks to: what is said, then the environment, then the `puna up` of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.cli.exits import USAGE, CliError
from gateway.cli.folders import default_state_dir
from gateway.cli.running import read_record

if TYPE_CHECKING:
    from bus.settings import NatsSettings

DEFAULT_GATEWAY: Final = "http://127.0.0.1:8080"
_NATS_SAID: Final = ("NATS_URL", "NATS_CONTEXT")


@dataclass(frozen=True, slots=True)
class Target:
    """Addresses as given on the command line; None where nothing was."""

    nats: str | None = None
    gateway: str | None = None
    api_key: str | None = None

    def nats_settings(self) -> NatsSettings:
        """How to reach NATS. Raises `CliError` for settings that cannot be."""
        from pydantic import ValidationError

        from bus.settings import NatsSettings
        from schemas.errors import PunaError

        url = self.nats or (None if any(os.environ.get(name) for name in _NATS_SAID) else _recorded("nats"))
        try:
            return NatsSettings.from_env(url=url)
        except PunaError as error:
            raise CliError(error.message, USAGE) from error
        except ValidationError as error:
            raise CliError("; ".join(item["msg"] for item in error.errors()), USAGE) from error

    def gateway_url(self) -> str:
        """The base URL of a gateway, without `/v1`."""
        url = self.gateway or os.environ.get("PUNA_GATEWAY") or _recorded("gateway") or DEFAULT_GATEWAY
        return url.rstrip("/").removesuffix("/v1")

    def key(self) -> str | None:
        """The API key for the gateway."""
        return self.api_key or os.environ.get("PUNA_API_KEY")


def _recorded(name: str) -> str | None:
    record = read_record(default_state_dir())
    return str(record[name]) if record and name in record else None
