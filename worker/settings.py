"""Settings of one worker process. Every limit names its unit."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from bus.settings import NatsSettings, environment_of
from schemas.aliases import Aliases
from schemas.config import load, words
from schemas.demand import SPILL_AFTER_S
from schemas.errors import InvalidName
from schemas.subjects import LABEL_NODE, LABEL_REGION, check_model_id, check_node_id
from web.address import split_address
from web.keys import Keyring, keys_for
from worker.accelerators.choice import AcceleratorSettings, device_names
from worker.accelerators.shares import MEMORY_ALIGN_BYTES, amount
from worker.aliases import aliases
from worker.desired.settings import DesiredSettings
from worker.enginespec import EngineSettings, FlagValue
from worker.limits import EngineLimits, LimitSettings
from worker.peers.settings import PeerSettings
from worker.plans import Pack
from worker.room import MemoryCheck
from worker.scopes import StatisticsSettings
from worker.store.settings import StoreSettings
from worker.transfer.settings import DownloadSettings

_REMEDY: Final = "set http.api_keys_file (PUNA_HTTP__API_KEYS_FILE=FILE), or set PUNA_HTTP__API_KEYS=KEY"


class Group(BaseModel):
    """Base of all groups of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Group):
    """One model that this node serves."""

    model: str
    """The name that clients ask for."""
    path: Path
    """The GGUF file, the first one of a split model."""
    context_tokens: int | None = Field(default=None, ge=64)
    """What one request may use. Unset: what the model was made for, at most 8192, and of that a half or a quarter, not
    below 2048, where the devices have no room for it."""
    slots: int | None = Field(default=None, ge=1, le=256)
    """Requests at the same time; unset: the node's `slots`."""
    flags: dict[str, FlagValue] = Field(default_factory=dict[str, FlagValue])
    """llama-server's own long flags, with or without their dashes."""
    environment: dict[str, str] = Field(default_factory=dict[str, str])
    devices: Annotated[tuple[str, ...], BeforeValidator(words)] = ()
    """The devices that an engine of it may run on, in the order of preference: `cuda:1,cuda:0`. Unset: any GPU that the
    engine program sees, the one with most free memory first; the CPU where there is none."""
    devices_per_engine: int | None = Field(default=None, ge=1, le=64)
    """Each engine of it is spread over so many devices (tensor split). Unset: one, or the fewest that can hold it."""
    max_engines: int | None = Field(default=None, ge=1)
    """Engines of it that this node may have at once. Unset: one on each of its devices."""
    cpu_fallback: bool = False
    """Whether it may run on the CPU of a node with GPUs, if it can never run on them. Slow, and said as it happens."""
    pinned: bool = False
    """Started with the node, started again when it is not there, and never stopped to make room."""
    preload: bool | None = None
    """Whether its engine is started with the node. Unset: yes, if it fits beside those named before it; the others stay
    on disk and are started when they are asked for."""
    idle_ttl_s: float | None = Field(default=None, gt=0)
    """An engine that had no request for this long is stopped, unless it is pinned; unset: the node's `idle_ttl_s`."""
    threads: int | None = Field(default=None, ge=1)
    limits: EngineLimits = Field(default_factory=EngineLimits)
    """What is set here counts instead of the node's."""

    @field_validator("model")
    @classmethod
    def _known_shape(cls, value: str) -> str:
        try:
            return check_model_id(value)
        except InvalidName as error:
            raise ValueError(error.message) from error


class HttpSettings(Group):
    """The worker's own HTTP."""

    listen: str = "127.0.0.1:8081"
    """HOST:PORT; port 0 takes a free one; an IPv6 host stands in brackets."""
    api_keys: Annotated[list[SecretStr], BeforeValidator(words)] = Field(default_factory=list[SecretStr])
    api_keys_file: Path | None = None
    """One key a line: `key`, `name:key` or `name:sha256:<hex>`; `#` begins a comment."""
    body_bytes: int = Field(default=8 << 20, gt=0)
    """Largest request body, 413."""
    advertise: str | None = Field(default=None, pattern=r"^http://[A-Za-z0-9.:\[\]_-]+(?:/[!-~]*)?$")
    """Where other nodes reach this HTTP, as `http://HOST:PORT`. Unset: the address that is listened on; if that is all
    of them, the one on the way to NATS."""

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
        return keys_for(self.listen, self.api_keys_file, given, remedy=_REMEDY)


class LogSettings(Group):
    """What is written to stderr."""

    format: Literal["json", "pretty", "auto"] = "auto"
    """`auto`: for people on a terminal, else JSON."""
    level: Literal["debug", "info", "warning", "error"] = "info"


def default_node(environ: Mapping[str, str] | None = None) -> str:
    """`NODE_NAME`, else this host's name, with what may not stand in a node id replaced by `-`."""
    environ = os.environ if environ is None else environ
    name = environ.get("NODE_NAME") or platform.node() or "node"
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64] or "node"


def default_state_dir(node: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where this node keeps what must outlive the process."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "puna" / "worker" / node


class WorkerSettings(Group):
    """What an operator may set. Defaults suit one machine: loopback, the local NATS server."""

    node: str = Field(default_factory=default_node)
    nats: NatsSettings = Field(default_factory=lambda: NatsSettings.model_validate({}))
    engine: EngineSettings = Field(default_factory=EngineSettings)
    models: list[ModelSettings] = Field(default_factory=list[ModelSettings])
    slots: int = Field(default=4, ge=1, le=256)
    """Requests at the same time, of each model that does not say."""
    http: HttpSettings = Field(default_factory=HttpSettings)
    devices: Annotated[tuple[str, ...], BeforeValidator(device_names)] = ()
    """The devices of this host that this node may use: `auto`, or names as `puna doctor` tells them, `[cuda:0]`. The
    others are hidden from its engines and are no part of the node. Unset: `auto`, all."""
    placement: Pack = "evenly"
    """Where an engine goes that several devices have room for: `evenly` to the emptiest, `fill` to the fullest that can
    hold it, so that the others stay free for large models."""
    accelerators: AcceleratorSettings = Field(default_factory=AcceleratorSettings)
    """Which kinds of device to use; by default all that are found."""
    memory_check: MemoryCheck | None = None
    """What to do with a model that needs more memory than its devices have free: `refuse`, `warn`, or `off`. Unset:
    `refuse` on GPUs, `warn` on the CPU and for models that flags put on a GPU only in part."""
    reserved_memory_bytes: int = Field(default=512 << 20, ge=0)
    """Of each device, kept free of engines."""
    memory_limit_bytes: int | None = Field(default=None, gt=0)
    """Of each device, what all engines together may have by their plans and measurements. Unset: what is not reserved.
    With a limit the plan is held to on the CPU too."""
    idle_ttl_s: float | None = Field(default=None, gt=0)
    """An engine that had no request for this long is stopped; unset: never."""
    instance_start_concurrency: int = Field(default=4, ge=1)
    """Engines that may be loading at once."""
    max_pending_requests_per_device: int | None = Field(default=None, ge=1)
    """Requests that run in the engines of one device or wait on this node for them. Unset: the slots alone bound it."""
    spill_after_s: float = Field(default=SPILL_AFTER_S, ge=1)
    """A fleet starts at most one engine of a model on demand in this time. The same on all nodes and gateways."""
    reserved: dict[str, str] = Field(default_factory=dict[str, str])
    """By kind of resource, kept free of engines: `{cpu: "1", mem: 2G, cuda.mem: 5%}`. Of memory, of each device."""
    memory_align_bytes: int = Field(default=MEMORY_ALIGN_BYTES, gt=0)
    """Memory is counted in pieces of this size."""
    limits: LimitSettings = Field(default_factory=LimitSettings)
    """What each engine may take of its host."""
    statistics: StatisticsSettings = Field(default_factory=StatisticsSettings)
    """What is measured of the host, its engines and their processes, and how often."""
    compat_metrics: bool = False
    """Tell `/metrics` also under the names that Backend.AI's dashboards know."""
    downloads: DownloadSettings = Field(default_factory=DownloadSettings)
    """How models come to this node."""
    desired: DesiredSettings = Field(default_factory=DesiredSettings)
    """How the records of desired state are followed."""
    store: StoreSettings = Field(default_factory=StoreSettings)
    """Where models are kept, and how much of the disk they may have."""
    peers: PeerSettings = Field(default_factory=PeerSettings)
    """How nodes take files from each other, so that a source is asked once."""
    secrets: dict[str, Path] = Field(default_factory=dict[str, Path])
    """Files for the credentials that tasks call `secret:NAME`. Unset: `secrets/NAME` in the node's state folder."""
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    """What selectors of models ask for, beside those that every node has: `puna.node`, `puna.region`, `puna.shape`
    (`GPU.A100.4`), `puna.backend` (`cuda`… or `cpu`), `puna.arch`, `puna.engine`
    (`no` where no engine program is), and `model.NAME` with the state of each copy."""
    region: str | None = None
    state_dir: Path | None = None
    """Unset: a folder of this node's own under the user's state folder."""
    live_memory_limit_bytes: int | None = Field(default=None, ge=64 << 20)
    """Main memory of the worker's own process, above which `/livez` says that it should be started again. Unset: none.
    """
    drain_s: float = Field(default=30.0, ge=0)
    """On SIGTERM: how long running requests may take to end."""
    log: LogSettings = Field(default_factory=LogSettings)

    @field_validator("node")
    @classmethod
    def _node_is_a_name(cls, value: str) -> str:
        try:
            return check_node_id(value)
        except InvalidName as error:
            raise ValueError(error.message) from error

    @field_validator("reserved")
    @classmethod
    def _reserved_are_amounts(cls, value: dict[str, str]) -> dict[str, str]:
        for text in value.values():
            amount(text)
        return value

    @model_validator(mode="after")
    def _models_differ(self) -> Self:
        names = [each.model for each in self.models]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"models: {', '.join(sorted(twice))} is named twice; each model has one entry")
        return self

    def shown(self) -> dict[str, Any]:
        """All settings as JSON data, without secrets: keys, passwords, and values for an engine's environment."""
        data = self.model_dump(mode="json")
        data["nats"]["url"] = re.sub(r"//.*@", "//***@", data["nats"]["url"])
        for model in data["models"]:
            model["environment"] = dict.fromkeys(model["environment"], "***")
        return data

    def limits_of(self, model: str) -> EngineLimits:
        """The limits of a model's engines."""
        return self.limits.of(next((each.limits for each in self.models if each.model == model), None))

    def engine_cores(self, model: str) -> int | None:
        """Processors that the settings give an engine of the model; `None`: they do not say."""
        cores = self.limits_of(model).cpu_cores
        if cores is not None:
            return math.ceil(cores)
        return next((each.threads for each in self.models if each.model == model), None)

    @property
    def models_folder(self) -> Path:
        """Where models are kept."""
        return self.store.models_root_dir or self.state_folder / "models"

    def own_labels(self) -> dict[str, str]:
        """All labels of this node but those that tell of its copies."""
        built_in = {LABEL_NODE: self.node} | ({LABEL_REGION: self.region} if self.region else {})
        return self.labels | built_in

    @property
    def state_folder(self) -> Path:
        """Where this node keeps what must outlive the process."""
        return self.state_dir or default_state_dir(self.node)


def settings_from(
    config: Path | None,
    environ: Mapping[str, str],
    given: Mapping[str, Any],
    names: Aliases | None = None,
    stored: Mapping[str, Any] | None = None,
) -> WorkerSettings:
    """Command line over environment over `stored` over file over defaults. `names` are the other names of settings, and
    keep those that were met and do nothing. Raises `ConfigError`, `InvalidRequest`, `OSError`."""
    text = config.read_text(encoding="utf-8") if config else ""
    known = environment_of(environ)
    if environ.get("NODE_NAME"):
        known["PUNA_NODE"] = default_node(environ)
    source = str(config) if config else "the environment"
    return load(
        WorkerSettings,
        text=text,
        source=source,
        environ=known | dict(environ),
        overrides=given,
        aliases=names or aliases(),
        stored=stored,
    )


_FLAG_MODEL: Final = re.compile(r"([^=]+)=(.+)")


def model_argument(text: str) -> dict[str, Any]:
    """`NAME=PATH` of the command line. Raises `ValueError`."""
    hit = _FLAG_MODEL.fullmatch(text)
    if hit is None:
        raise ValueError(f"--model {text!r}: write NAME=PATH, for example smollm2=/models/smollm2.gguf")
    return {"model": hit[1].strip(), "path": str(Path(hit[2]).expanduser())}
