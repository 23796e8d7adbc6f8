"""Every subject, queue group, stream, durable, bucket and header name, spelled once.

The encoding of names is injective: characters outside `[A-Za-z0-9_-]` become `=XX`, the upper-case hex of each UTF-8
byte. The result is a legal NATS subject token, KV key part and durable name alike, and two ids never meet.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from schemas.errors import InvalidName

NAME_LIMIT_BYTES: Final = 200
"""Longest encoded name. NATS itself has no limit per token; file names (255 bytes) and control lines (4096) do."""
NODE_LIMIT_CHARS: Final = 64

WORKERS_GROUP: Final = "workers"
WORKER_SERVICE: Final = "puna-worker"
"""NATS micro service by which each node is asked."""
PULL_GROUP: Final = "slots"
INTERACTIVE: Final = "interactive"
BATCH: Final = "batch"
LANES: Final = (INTERACTIVE, BATCH)
"""Lanes in the order in which a free slot is offered to them."""

H_REQUEST: Final = "Puna-Request"
H_EPOCH: Final = "Puna-Epoch"
H_DEADLINE: Final = "Puna-Deadline"
H_REPLY: Final = "Puna-Reply"
H_OP: Final = "Puna-Op"
H_TENANT: Final = "Puna-Tenant"
H_FRAMES: Final = "Puna-Frames"
H_BLOB: Final = "Puna-Blob"
"""The body is not in the message but in the object store, under this name."""
H_DEATHS: Final = "Puna-Deaths"
"""Engines that died while they worked on the request; a second one ends it with 422."""
H_ENGINE: Final = "Puna-Engine"
"""The engine that holds the conversation's prompt cache: a wish, not an order."""
H_TRACEPARENT: Final = "traceparent"
H_MSG_ID: Final = "Nats-Msg-Id"
H_MSG_TTL: Final = "Nats-TTL"
H_SERVICE_ERROR: Final = "Nats-Service-Error"
H_SERVICE_ERROR_CODE: Final = "Nats-Service-Error-Code"

LABEL_NODE: Final = "puna.node"
LABEL_REGION: Final = "puna.region"
LABEL_SHAPE: Final = "puna.shape"
"""`GPU.A100.4`, or `CPU`."""
LABEL_BACKEND: Final = "puna.backend"
"""Of its GPUs: `cuda`, `rocm`…; of several kinds the one with most devices; else `cpu`."""
LABEL_ARCH: Final = "puna.arch"
"""`x86_64`, `aarch64`…"""
LABEL_ENGINE: Final = "puna.engine"
"""`yes`, or `NO_ENGINE`: the node has no engine program, so it keeps models and serves none."""
NO_ENGINE: Final = "no"
LABEL_OF_COPY: Final = "model."
"""Of the labels that tell of copies: `model.<name>=Ready`."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_NODE = re.compile(rf"[A-Za-z0-9](?:[A-Za-z0-9._-]{{0,{NODE_LIMIT_CHARS - 1}}})")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,32}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PLAIN_SUBJECT = re.compile(r"(?=.{1,255}\Z)[^\s.*>$][^\s.*>]*(?:\.[^\s.*>]+)*")


def encode(name: str) -> str:
    """A name as one subject token.

    Raises `InvalidName` if the name is empty, not valid Unicode, or longer than `NAME_LIMIT_BYTES` once encoded.
    """
    if not name:
        raise InvalidName("a name is empty; give it at least one character")
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise InvalidName("a name holds half of a surrogate pair; send valid Unicode") from error
    if len(raw) > NAME_LIMIT_BYTES:
        raise InvalidName(f"a name has {len(raw)} bytes; at most {NAME_LIMIT_BYTES} are allowed")
    token = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in raw)
    if len(token) > NAME_LIMIT_BYTES:
        raise InvalidName(f"a name has {len(token)} bytes once encoded; at most {NAME_LIMIT_BYTES} are allowed")
    return token


@lru_cache(maxsize=1024)
def decode(token: str) -> str:
    """The name behind a token. Raises `InvalidName` for anything that `encode` would not have written."""
    if not _TOKEN.fullmatch(token):
        raise InvalidName(f"{token[:80]!r} is not an encoded name")
    try:
        name = re.sub(rb"=([0-9A-F]{2})", lambda hit: bytes([int(hit[1], 16)]), token.encode()).decode()
    except UnicodeDecodeError as error:
        raise InvalidName(f"{token[:80]!r} does not hold UTF-8") from error
    if encode(name) != token:
        raise InvalidName(f"{token[:80]!r} is not the one encoding of its name")
    return name


def check_model_id(name: str) -> str:
    """The model id as given, if it may be used. Raises `InvalidName`, which says what is wrong with it.

    A model id is printable, has no space at its ends and no part (between `/`) that a file system would read as
    "here" or "up": ids end up in paths long after they were checked.
    """
    shown = repr(name[:40]) + ("…" if len(name) > 40 else "")
    if not name.isprintable() or name != name.strip():
        raise InvalidName(f"model {shown} holds unprintable characters or space at an end", param="model")
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InvalidName(f"model {shown} has a part that is empty, '.', '..' or holds a backslash", param="model")
    try:
        encode(name)
    except InvalidName as error:
        raise InvalidName(f"model: {error.message}", param="model") from error
    return name


def check_node_id(name: str) -> str:
    """The node id as given. Raises `InvalidName` unless it is 1 to 64 of `A-Za-z0-9._-` after a letter or digit."""
    if not _NODE.fullmatch(name):
        raise InvalidName(
            f"node {name[:40]!r}: use 1 to {NODE_LIMIT_CHARS} letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return name


def check_request_id(value: str) -> str:
    """A request or task id as given: 1 to 128 of `A-Za-z0-9_-`. Raises `InvalidName` otherwise."""
    if not _ID.fullmatch(value):
        raise InvalidName(f"id {value[:40]!r}: use 1 to 128 letters, digits, '_' or '-'")
    return value


@dataclass(frozen=True, slots=True)
class Names:
    """All names of one fleet. Several fleets share a NATS account by different prefixes."""

    prefix: str = "puna"

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise InvalidName(f"prefix {self.prefix[:40]!r}: use 1 to 32 letters, digits, '_' or '-'")

    # -- requests ---------------------------------------------------------------------------------------------------
    def infer(self, op: str, model: str) -> str:
        """Ask any worker that serves the model."""
        return f"{self.prefix}.infer.{op}.{encode(model)}"

    def infer_any_op(self, model: str) -> str:
        """What a worker subscribes to, in `WORKERS_GROUP`, for a model that it serves."""
        return f"{self.prefix}.infer.*.{encode(model)}"

    def node_infer(self, node: str, op: str, model: str) -> str:
        """Ask one node."""
        return f"{self.node(node, 'infer')}.{op}.{encode(model)}"

    def node_infer_any(self, node: str) -> str:
        """What a worker subscribes to for requests that name it."""
        return f"{self.node(node, 'infer')}.*.*"

    def queue(self, lane: str, model: str) -> str:
        """Wait in line for the next free slot."""
        return f"{self.prefix}.queue.{lane}.{encode(model)}"

    def queue_all(self) -> str:
        """Every line: what the stream takes in."""
        return f"{self.prefix}.queue.*.*"

    def queue_durable(self, lane: str, model: str) -> str:
        """The consumer of one line."""
        return f"{lane}_{encode(model)}"

    def demand(self, model: str) -> str:
        """Says that a model is wanted and nothing warm can take a request."""
        return f"{self.prefix}.demand.{encode(model)}"

    def demand_all(self) -> str:
        """What a worker hears of all models."""
        return f"{self.prefix}.demand.*"

    def node(self, node: str, verb: str) -> str:
        """Control one node."""
        return f"{self.prefix}.node.{encode(node)}.{verb}"

    def replies(self, gateway: str) -> str:
        """The one wildcard on which a gateway hears all its frames."""
        return f"{self.prefix}.reply.{gateway}.*"

    def reply(self, gateway: str, stream: str) -> str:
        """Where the frames of one request go."""
        return f"{self.prefix}.reply.{gateway}.{stream}"

    def may_answer_to(self, subject: str) -> bool:
        """Whether a request may name the subject in `Puna-Reply`: a worker publishes there with rights that whoever
        asks may not have, so neither the server's own subjects nor the fleet's."""
        if not _PLAIN_SUBJECT.fullmatch(subject):
            return False
        return not subject.startswith(f"{self.prefix}.") or subject.startswith(f"{self.prefix}.reply.")

    def event(self, node: str, kind: str) -> str:
        """Where a node tells what happened."""
        return f"{self.prefix}.event.{encode(node)}.{kind}"

    def task(self, op: str, node: str | None = None) -> str:
        """A task for any eligible node, or for one."""
        return f"{self.prefix}.task.{op}" if node is None else f"{self.prefix}.task.{op}.{encode(node)}"

    def tasks_any(self) -> str:
        """Tasks for any node: what the consumer that all workers share takes."""
        return f"{self.prefix}.task.*"

    def tasks_of(self, node: str) -> str:
        """Tasks that name a node: what its own consumer takes."""
        return f"{self.prefix}.task.*.{encode(node)}"

    def tasks_all(self) -> tuple[str, str]:
        """What the stream of tasks takes in."""
        return f"{self.prefix}.task.*", f"{self.prefix}.task.*.*"

    def tasks_durable(self, node: str | None = None) -> str:
        """The consumer of the tasks for any node, or of those for one."""
        return "tasks_any" if node is None else f"tasks_node_{encode(node)}"

    def task_parts(self, subject: str) -> tuple[str, str | None]:
        """Operation and node that a task's subject names. Raises `InvalidName` for another subject."""
        head, _, rest = subject.partition(f"{self.prefix}.task.")
        op, mark, token = rest.partition(".")
        if head or not op:
            raise InvalidName(f"{subject[:80]!r} is no subject of a task")
        return op, decode(token) if mark else None

    def dead(self, op: str) -> str:
        """Where a task goes that cannot be done."""
        return f"{self.prefix}.dlq.{op}"

    def dead_all(self) -> str:
        """All of them: what the stream takes in."""
        return f"{self.prefix}.dlq.*"

    def peer(self, key: str) -> str:
        """Ask all workers for the bytes of a file; `key` names it (`schemas.peer`)."""
        return f"{self.prefix}.peer.{encode(key)}"

    def peer_any(self) -> str:
        """What a worker hears of such questions."""
        return f"{self.prefix}.peer.*"

    def copy_key(self, model: str, node: str) -> str:
        """Key in the copies bucket: a model's files on one node."""
        return f"{encode(model)}.{encode(node)}"

    def worker_needs(self, node: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a worker must be allowed to publish and to subscribe to."""
        publish = (
            self.queue_all(),
            f"{self.prefix}.reply.*.*",
            self.event(node, "*"),
            f"$KV.{self.bucket_nodes}.{encode(node)}",
            f"$KV.{self.bucket_leases}.>",
            f"{self.prefix}.demand.*",
            self.peer_any(),
            f"{self.prefix}.node.*.copy",
            self.dead("*"),
            f"$KV.{self.bucket_tasks}.>",
            f"$KV.{self.bucket_models}.>",
            f"$KV.{self.bucket_copies}.*.{encode(node)}",
            *self._makes_streams(),
            *self._reads(*(f"KV_{each}" for each in self._followed), f"KV_{self.bucket_leases}"),
            f"$JS.API.STREAM.MSG.GET.KV_{self.bucket_config}",
            f"$JS.API.CONSUMER.INFO.{self.stream_queue}.*",
            f"$JS.API.CONSUMER.CREATE.{self.stream_queue}.>",
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream_queue}.*",
            f"$JS.ACK.{self.stream_queue}.>",
            f"$JS.API.CONSUMER.INFO.{self.stream_tasks}.*",
            f"$JS.API.CONSUMER.CREATE.{self.stream_tasks}.>",
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream_tasks}.*",
            f"$JS.API.STREAM.MSG.GET.{self.stream_tasks}",
            f"$JS.API.STREAM.MSG.DELETE.{self.stream_tasks}",
            f"$JS.ACK.{self.stream_tasks}.>",
            f"$JS.API.DIRECT.GET.OBJ_{self.bucket_blobs}",
            f"$JS.API.STREAM.PURGE.OBJ_{self.bucket_blobs}",
            f"$O.{self.bucket_blobs}.>",
        )
        hears = (f"{self.prefix}.infer.*.*", self.node(node, ">"), self.demand_all(), self.peer_any(), "$SRV.>")
        return publish, hears

    @property
    def _followed(self) -> tuple[str, ...]:
        """Buckets that are read whole."""
        return self.bucket_nodes, self.bucket_models, self.bucket_copies, self.bucket_tasks

    def _makes_streams(self) -> tuple[str, ...]:
        """To look at all streams, and to have what was lost again."""
        streams = (self.stream_queue, self.stream_events, self.stream_tasks, self.stream_dead)
        buckets = (*self._followed, self.bucket_leases, self.bucket_config)
        names = (*streams, *(f"KV_{each}" for each in buckets), f"OBJ_{self.bucket_blobs}")
        return tuple(f"$JS.API.STREAM.{verb}.{name}" for name in names for verb in ("INFO", "CREATE", "UPDATE"))

    def _reads(self, *streams: str) -> tuple[str, ...]:
        """To get a bucket's entries, and to follow them."""
        verbs = ("$JS.API.STREAM.MSG.GET.{}", "$JS.API.CONSUMER.CREATE.{}.>", "$JS.FC.{}.>")
        return tuple(verb.format(stream) for stream in streams for verb in verbs)

    def gateway_needs(self, gateway: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a gateway must be allowed to publish and to subscribe to, beside answers (`allow_responses`)."""
        followed = (*self._followed, self.bucket_leases)
        publish = (
            self.queue_all(),
            f"{self.prefix}.node.*.>",
            f"{self.prefix}.demand.*",
            *self.tasks_all(),
            f"$KV.{self.bucket_leases}.>",
            f"$KV.{self.bucket_nodes}.*",
            *self._makes_streams(),
            *self._reads(*(f"KV_{each}" for each in followed)),
            f"$JS.API.STREAM.MSG.DELETE.{self.stream_queue}",
            f"$JS.API.STREAM.MSG.GET.{self.stream_tasks}",
            f"$JS.API.DIRECT.GET.OBJ_{self.bucket_blobs}",
            f"$JS.API.STREAM.PURGE.OBJ_{self.bucket_blobs}",
            f"$O.{self.bucket_blobs}.>",
        )
        return publish, (self.replies(gateway), *self.tasks_all())

    def client_needs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a program must be allowed that asks models without a gateway: to ask, to cancel, to send a large body,
        and to see which nodes there are. What it hears comes to its inbox."""
        publish = (
            f"{self.prefix}.infer.*.*",
            f"{self.prefix}.node.*.infer.*.*",
            f"{self.prefix}.node.*.cancel",
            f"{self.prefix}.node.*.models",
            self.queue_all(),
            self.demand_all(),
            f"$O.{self.bucket_blobs}.>",
            f"$JS.API.STREAM.INFO.OBJ_{self.bucket_blobs}",
            f"$JS.API.DIRECT.GET.OBJ_{self.bucket_blobs}.$O.{self.bucket_blobs}.M.>",
            *(f"$SRV.{verb}.{WORKER_SERVICE}{tail}" for verb in ("PING", "INFO") for tail in ("", ".>")),
        )
        return publish, ()

    def admin_needs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the `puna` and `nats` command lines of an operator must be allowed: everything of the fleet, and all of
        JetStream."""
        publish = (f"{self.prefix}.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$KV.>", "$O.>", "$SRV.>")
        return publish, (f"{self.prefix}.>", "$JS.EVENT.>", "$KV.>", "$O.>", "$SRV.>")

    # -- leases -----------------------------------------------------------------------------------------------------
    def lease_start(self, model: str) -> str:
        """Key in the leases bucket: who may start an engine of the model on demand, until the lease expires."""
        return f"start.{encode(model)}"

    def lease_cool(self, origin: str) -> str:
        """Key in the leases bucket: the origin (`https://host`) asked to be left alone, until the lease expires."""
        short = len(origin) <= NAME_LIMIT_BYTES // 3 and origin.isascii()
        return f"cool.{encode(origin if short else hashlib.sha256(origin.encode()).hexdigest())}"

    def lease_fetch(self, key: str) -> str:
        """Key in the leases bucket: who asks the source for a file, while others wait for what it brings."""
        return f"fetch.{encode(key)}"

    def lease_poison(self, digest: str) -> str:
        """Key in the leases bucket: a request with this digest has killed engines."""
        return f"poison.{digest}"

    # -- streams and buckets ----------------------------------------------------------------------------------------
    @property
    def _upper(self) -> str:
        return self.prefix.upper() if self.prefix == "puna" else self.prefix

    @property
    def stream_queue(self) -> str:
        """The lines of all models."""
        return f"{self._upper}_QUEUE"

    @property
    def stream_events(self) -> str:
        """What happened in the last seven days."""
        return f"{self._upper}_EVENTS"

    @property
    def stream_tasks(self) -> str:
        """Tasks that no node has done yet."""
        return f"{self._upper}_TASKS"

    @property
    def stream_dead(self) -> str:
        """Tasks that could not be done, with the reason."""
        return f"{self._upper}_DLQ"

    @property
    def bucket_nodes(self) -> str:
        """Heartbeats."""
        return f"{self.prefix}_nodes"

    @property
    def bucket_leases(self) -> str:
        """Who holds what for a time; each key has its own."""
        return f"{self.prefix}_leases"

    @property
    def bucket_blobs(self) -> str:
        """Object store for bodies over the server's `max_payload`."""
        return f"{self.prefix}_blobs"

    @property
    def bucket_models(self) -> str:
        """Desired state."""
        return f"{self.prefix}_models"

    @property
    def bucket_copies(self) -> str:
        """What is where: each node's copies."""
        return f"{self.prefix}_copies"

    @property
    def bucket_config(self) -> str:
        """Settings of nodes, by node, that count more than their files."""
        return f"{self.prefix}_config"

    @property
    def bucket_tasks(self) -> str:
        """State and progress of each task."""
        return f"{self.prefix}_tasks"
