"""How to reach NATS: from arguments, the environment and the contexts of the `nats` command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from schemas.errors import InvalidRequest

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
_SCHEMES: Final = ("nats", "tls")

_ENVIRONMENT: Final = {
    "NATS_URL": "url",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_NKEY": "nkey_seed_file",
    "NATS_CREDS": "creds_file",
    "NATS_CA": "tls_ca_file",
    "NATS_CERT": "tls_cert_file",
    "NATS_KEY": "tls_key_file",
    "POD_NAMESPACE": "prefix",
    "PUNA_PREFIX": "prefix",
}
_CONTEXT: Final = {
    "url": "url",
    "user": "user",
    "password": "password",
    "token": "token",
    "nkey": "nkey_seed_file",
    "creds": "creds_file",
    "ca": "tls_ca_file",
    "cert": "tls_cert_file",
    "key": "tls_key_file",
    "tls_first": "tls_first",
    "jetstream_domain": "jetstream_domain",
    "inbox_prefix": "inbox_prefix",
}


class NatsSettings(BaseModel):
    """Where NATS is and who we are. Secrets never show in `repr`, logs or errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(DEFAULT_URL, description="nats:// or tls:// address; several are separated by commas")
    user: str | None = Field(None, description="user name; without a password it is sent as a token")
    password: SecretStr | None = None
    token: SecretStr | None = None
    nkey_seed_file: Path | None = Field(None, description="file with an nkey seed (preferred over passwords)")
    creds_file: Path | None = Field(None, description="file with JWT and seed, as `nsc` writes it")
    tls_ca_file: Path | None = Field(None, description="authority of the server's certificate; the system's if unset")
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_required: bool = Field(False, description="never talk in plain text; implied by tls:// and by any tls file")
    tls_first: bool = Field(False, description="the server has `handshake_first: true`")
    prefix: str = Field("puna", description="first token of all subjects: several fleets can share one account")
    replicas: int = Field(1, ge=1, le=5, description="copies of each stream and bucket in a NATS cluster")
    queue_limit_requests: int = Field(1000, ge=1, description="requests that may wait in one line")
    jetstream_domain: str | None = None
    inbox_prefix: str = "_INBOX"
    ping_interval_s: float = Field(5.0, gt=0, description="two of these without an answer end the connection")
    pending_limit_bytes: int = Field(16 << 20, ge=1 << 16, description="bytes that may wait for a slow server")

    @model_validator(mode="before")
    @classmethod
    def _credentials_out_of_the_url(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "@" not in str(given.get("url", "")):  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
            return given  # pyright: ignore[reportUnknownVariableType]
        values: dict[str, Any] = dict(given)  # pyright: ignore[reportUnknownArgumentType]
        urls = [urlsplit(part.strip()) for part in str(values["url"]).split(",")]
        named = next(url for url in urls if url.username)
        if named.password is None:
            values.setdefault("token", unquote(named.username or ""))
        else:
            values.setdefault("user", unquote(named.username or ""))
            values.setdefault("password", unquote(named.password))
        bare = [urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2])) for url in urls]
        return values | {"url": ",".join(bare)}

    @field_validator("url")
    @classmethod
    def _known_schemes(cls, value: str) -> str:
        for part in value.split(","):
            url = urlsplit(part.strip() if "://" in part else f"nats://{part.strip()}")
            if url.scheme not in _SCHEMES or not url.hostname or url.port == 0:  # a port over 65535 raises
                raise ValueError(f"{quote(part.strip(), safe=':/')!r}: use nats://HOST:PORT or tls://HOST:PORT")
        return value

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses, without credentials, each with its scheme and port."""
        return tuple(_whole(part.strip()) for part in self.url.split(","))

    @property
    def wants_tls(self) -> bool:
        """Whether a connection in plain text must be refused before anything secret is sent."""
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        return self.tls_required or self.tls_first or any(files) or any(s.startswith("tls:") for s in self.servers)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **given: Any) -> NatsSettings:
        """Settings from `given` (those that are not None), then the environment, then `NATS_CONTEXT`'s file.

        Raises `InvalidRequest` when the context cannot be read, pydantic's `ValidationError` for a bad value.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = _context(environ) if environ.get("NATS_CONTEXT") else {}
        values |= {field: environ[name] for name, field in _ENVIRONMENT.items() if environ.get(name)}
        values |= {name: value for name, value in given.items() if value is not None}
        return cls(**values)


def environment_of(environ: Mapping[str, str]) -> dict[str, str]:
    """What `from_env` reads, as variables of a program whose `nats` these settings are: `PUNA_NATS__URL` and so on.

    Raises `InvalidRequest` when the context cannot be read.
    """
    found = NatsSettings.from_env(environ).model_dump(exclude_unset=True)
    return {f"PUNA_NATS__{name.upper()}": _plain(value) for name, value in found.items()}


def _plain(value: Any) -> str:
    return str(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _whole(address: str) -> str:
    url = urlsplit(address if "://" in address else f"nats://{address}")
    return urlunsplit(url._replace(netloc=url.netloc if url.port else f"{url.netloc.rstrip(':')}:4222"))


def _context(environ: Mapping[str, str]) -> dict[str, Any]:
    """The values of a context of the `nats` command line. `~` is expanded as that tool does."""
    name = environ["NATS_CONTEXT"]
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".config")
    path = Path(name) if name.startswith("/") else home / "nats" / "context" / f"{name}.json"
    try:
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InvalidRequest(f"NATS_CONTEXT={name}: {path} cannot be read; see `nats context ls`") from error
    values = {field: found[key] for key, field in _CONTEXT.items() if found.get(key)}
    return {key: _expanded(value) if key.endswith("_file") else value for key, value in values.items()}


def _expanded(value: str) -> Path:
    return Path(value).expanduser()
