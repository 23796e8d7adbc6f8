"""Settings of every stream, consumer and bucket as frozen data; `bus.topology.ensure` makes the server agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from schemas.subjects import LANES, PULL_GROUP, Names

_NS: Final = 1_000_000_000
Storage = Literal["memory", "file"]

QUEUE_LIMIT_REQUESTS: Final = 1000
"""Requests that may wait in one line; one more is refused with 429."""
QUEUE_LIMIT_BYTES: Final = 256 << 20
QUEUE_ACK_WAIT_S: Final = 2.0
"""A worker that took a request and says nothing for this long is frozen or dead, and the request goes to another."""
QUEUE_MAX_AGE_S: Final = 3600.0
CONSUMER_UNUSED_S: Final = 3600.0
DUPLICATE_WINDOW_S: Final = 120.0
HEARTBEAT_S: Final = 2.0
NODE_TTL_S: Final = 3 * HEARTBEAT_S
BLOB_TTL_S: Final = 600.0
BLOB_LIMIT_BYTES: Final = 256 << 20
LEASE_MAX_AGE_S: Final = 3600.0
"""No lease is longer; most have a shorter time of their own."""
LEASES_LIMIT_BYTES: Final = 16 << 20
EVENTS_LIMIT_BYTES: Final = 256 << 20
EVENTS_MAX_AGE_S: Final = 7 * 86400.0
TASKS_LIMIT_BYTES: Final = 64 << 20
TASKS_MAX_AGE_S: Final = 30 * 86400.0
"""A task that nobody has done after so long, because its node never came back, is given up."""
TASK_ACK_WAIT_S: Final = 30.0
"""A node that took a task and says nothing for this long is frozen or dead, and the task goes to another."""
DEAD_LIMIT_BYTES: Final = 64 << 20
DEAD_MAX_AGE_S: Final = 30 * 86400.0
RECORDS_LIMIT_BYTES: Final = 64 << 20
"""Of each of the buckets of tasks, models and copies."""
CONFIG_LIMIT_BYTES: Final = 4 << 20
"""Of the settings of nodes."""
TASK_ENDED_TTL_S: Final = 7 * 86400.0
"""How long the record of a task that has ended is kept."""
MODELS_HISTORY: Final = 8


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream, in the server's own terms; times in seconds."""

    name: str
    subjects: tuple[str, ...]
    storage: Storage
    retention: Literal["limits", "interest", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    max_msgs_per_subject: int = -1
    max_bytes: int = -1
    max_age_s: float = 0.0
    allow_msg_ttl: bool = False
    duplicate_window_s: float = DUPLICATE_WINDOW_S
    replicas: int = 1

    def config(self) -> dict[str, Any]:
        """The body of `$JS.API.STREAM.CREATE` and `.UPDATE`."""
        body: dict[str, Any] = {
            "name": self.name,
            "subjects": list(self.subjects),
            "storage": self.storage,
            "retention": self.retention,
            "discard": self.discard,
            "max_msgs_per_subject": self.max_msgs_per_subject,
            "max_bytes": self.max_bytes,
            "max_age": int(self.max_age_s * _NS),
            "duplicate_window": int(self.duplicate_window_s * _NS),
            "num_replicas": self.replicas,
            "allow_direct": True,
        }
        if self.discard_new_per_subject:
            body["discard_new_per_subject"] = True
        if self.allow_msg_ttl:
            body["allow_msg_ttl"] = True
        return body


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """One durable pull consumer; times in seconds."""

    stream: str
    durable: str
    filter_subject: str
    ack_wait_s: float
    max_deliver: int = -1
    max_ack_pending: int = 20_000
    priority_group: str | None = None
    inactive_threshold_s: float = 0.0

    def config(self) -> dict[str, Any]:
        """The `config` of `$JS.API.CONSUMER.CREATE`."""
        body: dict[str, Any] = {
            "durable_name": self.durable,
            "name": self.durable,
            "filter_subject": self.filter_subject,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait_s * _NS),
            "max_deliver": self.max_deliver,
            "max_ack_pending": self.max_ack_pending,
            "max_waiting": 20_000,
        }
        if self.priority_group:
            body |= {"priority_groups": [self.priority_group], "priority_policy": "prioritized"}
        if self.inactive_threshold_s:
            body["inactive_threshold"] = int(self.inactive_threshold_s * _NS)
        return body


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """One KV bucket. With `marker_ttl_s`, an expired key leaves a marker that watchers see."""

    name: str
    storage: Storage
    ttl_s: float = 0.0
    history: int = 1
    marker_ttl_s: float = 0.0
    max_bytes: int = -1
    replicas: int = 1

    def config(self) -> dict[str, Any]:
        """The bucket's stream, as ADR-8 of NATS lays it out."""
        body: dict[str, Any] = {
            "name": f"KV_{self.name}",
            "subjects": [f"$KV.{self.name}.>"],
            "storage": self.storage,
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": self.history,
            "max_age": int(self.ttl_s * _NS),
            "max_bytes": self.max_bytes,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "num_replicas": self.replicas,
            "duplicate_window": int(min(self.ttl_s or DUPLICATE_WINDOW_S, DUPLICATE_WINDOW_S) * _NS),
        }
        if self.marker_ttl_s:
            body |= {"allow_msg_ttl": True, "subject_delete_marker_ttl": int(self.marker_ttl_s * _NS)}
        return body


@dataclass(frozen=True, slots=True)
class BlobSpec:
    """One object store bucket."""

    name: str
    storage: Storage
    ttl_s: float
    max_bytes: int

    def config(self) -> dict[str, Any]:
        """The object store's stream, as ADR-20 of NATS lays it out."""
        return {
            "name": f"OBJ_{self.name}",
            "subjects": [f"$O.{self.name}.C.>", f"$O.{self.name}.M.>"],
            "storage": self.storage,
            "retention": "limits",
            "discard": "new",
            "max_age": int(self.ttl_s * _NS),
            "max_bytes": self.max_bytes,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "num_replicas": 1,
        }


@dataclass(frozen=True, slots=True)
class Topology:
    """All that must stand on the server before a fleet can work."""

    streams: tuple[StreamSpec, ...] = field(default=())
    buckets: tuple[BucketSpec, ...] = field(default=())
    blobs: tuple[BlobSpec, ...] = field(default=())


def fleet(names: Names, *, replicas: int = 1, queue_limit_requests: int = QUEUE_LIMIT_REQUESTS) -> Topology:
    """The topology of one fleet. Prompts stay in memory; what must outlive a restart is on disk."""
    return Topology(
        streams=(
            StreamSpec(
                name=names.stream_queue,
                subjects=(names.queue_all(),),
                storage="memory",
                retention="workqueue",
                discard="new",
                discard_new_per_subject=True,
                max_msgs_per_subject=queue_limit_requests,
                max_bytes=QUEUE_LIMIT_BYTES,
                max_age_s=QUEUE_MAX_AGE_S,
                allow_msg_ttl=True,
                replicas=replicas,
            ),
            StreamSpec(
                name=names.stream_events,
                subjects=(f"{names.prefix}.event.*.*",),
                storage="file",
                max_bytes=EVENTS_LIMIT_BYTES,
                max_age_s=EVENTS_MAX_AGE_S,
                replicas=replicas,
            ),
            StreamSpec(
                name=names.stream_tasks,
                subjects=names.tasks_all(),
                storage="file",
                retention="workqueue",
                discard="new",
                max_bytes=TASKS_LIMIT_BYTES,
                max_age_s=TASKS_MAX_AGE_S,
                allow_msg_ttl=True,
                replicas=replicas,
            ),
            StreamSpec(
                name=names.stream_dead,
                subjects=(names.dead_all(),),
                storage="file",
                max_bytes=DEAD_LIMIT_BYTES,
                max_age_s=DEAD_MAX_AGE_S,
                replicas=replicas,
            ),
        ),
        buckets=(
            BucketSpec(names.bucket_nodes, storage="memory", ttl_s=NODE_TTL_S, marker_ttl_s=60.0, replicas=replicas),
            BucketSpec(
                names.bucket_leases,
                storage="memory",
                ttl_s=LEASE_MAX_AGE_S,
                marker_ttl_s=1.0,
                max_bytes=LEASES_LIMIT_BYTES,
                replicas=replicas,
            ),
            *_records(names, replicas),
        ),
        blobs=(BlobSpec(names.bucket_blobs, storage="memory", ttl_s=BLOB_TTL_S, max_bytes=BLOB_LIMIT_BYTES),),
    )


def _records(names: Names, replicas: int) -> tuple[BucketSpec, ...]:
    """What the fleet knows of its models; on disk, so that it outlives the server."""
    limit, kept_s = RECORDS_LIMIT_BYTES, TASKS_MAX_AGE_S
    return (
        BucketSpec(names.bucket_models, "file", history=MODELS_HISTORY, max_bytes=limit, replicas=replicas),
        BucketSpec(names.bucket_copies, "file", marker_ttl_s=60.0, max_bytes=limit, replicas=replicas),
        BucketSpec(names.bucket_tasks, "file", kept_s, marker_ttl_s=60.0, max_bytes=limit, replicas=replicas),
        BucketSpec(
            names.bucket_config, "file", history=MODELS_HISTORY, max_bytes=CONFIG_LIMIT_BYTES, replicas=replicas
        ),
    )


def tasks(names: Names, node: str | None = None) -> ConsumerSpec:
    """The consumer of the tasks for any node, which all workers share, or of those that name one."""
    return ConsumerSpec(
        stream=names.stream_tasks,
        durable=names.tasks_durable(node),
        filter_subject=names.tasks_any() if node is None else names.tasks_of(node),
        ack_wait_s=TASK_ACK_WAIT_S,
    )


def line(names: Names, lane: str, model: str) -> ConsumerSpec:
    """The consumer behind one lane of one model's line."""
    if lane not in LANES:
        raise ValueError(f"lane {lane!r} is none of {', '.join(LANES)}")
    return ConsumerSpec(
        stream=names.stream_queue,
        durable=names.queue_durable(lane, model),
        filter_subject=names.queue(lane, model),
        ack_wait_s=QUEUE_ACK_WAIT_S,
        priority_group=PULL_GROUP,
        inactive_threshold_s=CONSUMER_UNUSED_S,
    )
