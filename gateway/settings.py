"""Settings of one gateway process. Every limit names its unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

from bus.settings import NatsSettings
from schemas.config import words
from schemas.demand import SPILL_AFTER_S
from schemas.request import DEADLINE_DEFAULT_S, DEADLINE_LIMIT_S
from web.address import split_address
from web.keys import Keyring, keys_for

Words = Annotated[list[str], BeforeValidator(words)]
Keys = Annotated[list[SecretStr], BeforeValidator(words)]


_REMEDY: Final = "start with --api-keys-file FILE, or set PUNA_API_KEYS=KEY"


class GatewaySettings(BaseModel):
    """What an operator may set. Defaults suit one machine: loopback, no keys, the local NATS server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = "127.0.0.1:8080"
    """HOST:PORT; port 0 takes a free one; an IPv6 host stands in brackets."""
    nats: NatsSettings = Field(default_factory=lambda: NatsSettings.model_validate({}))
    api_keys: Keys = Field(default_factory=list[SecretStr])
    """Keys in the form of a line of the file."""
    api_keys_file: Path | None = None
    """One key a line: `key`, `name:key` or `name:sha256:<hex>`; `#` begins a comment."""
    admin_keys: Words = Field(default_factory=list[str])
    """Names of the keys that may also load, unload, fetch and delete models; `*` for all. Without any keys everybody
    may."""
    metrics_open: bool = True
    """`/metrics` needs no key."""
    cors_origins: Words = Field(default_factory=list[str])
    """Origins whose pages may call; `*` for all. Empty: no CORS headers at all."""
    request_timeout_s: float = Field(default=DEADLINE_DEFAULT_S, gt=0, le=DEADLINE_LIMIT_S)
    """Deadline of a request whose client names none."""
    keep_alive_s: float = Field(default=15.0, gt=0)
    """Between two SSE comments to a stream that waits."""
    spill_after_s: float = Field(default=SPILL_AFTER_S, gt=0)
    """A request that has waited this long, while more wait than slots are free or on their way, asks for one more
    engine of its model."""
    affinity: bool = True
    """The next turn of a conversation is offered first to the engine that holds its prompt in its cache."""
    direct: bool = True
    """A request is offered at once to an engine that has at least half of its slots free, and stands in line else."""
    affinity_wait_ms: float = Field(default=50.0, gt=0, le=1000)
    """How long an engine may take to accept what it was offered before that goes into the line."""
    bus_wait_s: float = Field(default=2.0, ge=0)
    """A new request waits this long for a NATS session before it is refused with 503."""
    tries: int = Field(default=3, ge=1, le=10)
    """Nodes that a request is given to, one after the other, while its client has seen nothing."""
    body_bytes: int = Field(default=8 << 20, gt=0)
    """Largest request body, 413."""
    answer_bytes: int = Field(default=64 << 20, gt=0)
    """Largest answer that is not streamed."""
    slow_client_bytes: int = Field(default=256 << 10, gt=0)
    """A stream whose client has this much waiting gives its worker no more credit."""
    requests_limit: int = Field(default=10_000, gt=0)
    """Requests in flight; one more is refused with 429."""
    connections: int = Field(default=10_000, gt=0)
    """Open client connections; one more is answered 503."""
    fetch_schemes: Words = Field(default_factory=lambda: ["hf"])
    """Sources that clients who may manage models may have fetched by `POST /models`. Nodes fetch with their own network
    and credentials, so add `https`, `s3`… only where every such client is trusted with that. Empty: clients may neither
    fetch nor delete."""
    grace_s: float = Field(default=30.0, ge=0)
    """On SIGTERM: how long running streams may take to end."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "pretty"] = "auto"
    """`auto`: pretty on a terminal, else JSON."""

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        split_address(value)
        return value

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        return split_address(self.listen)

    def keys(self) -> Keyring:
        """The keys that may call. Raises `BadKey`, `OSError`, and `OpenDoor` where everybody could call."""
        given = [key.get_secret_value() for key in self.api_keys]
        return keys_for(self.listen, self.api_keys_file, given, remedy=_REMEDY, admins=self.admin_keys)
