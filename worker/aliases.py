"""Names of settings that users of other node agents know: of the file's top level, and of variables (`PUNA_…`)."""

from __future__ import annotations

from typing import Any, Final, cast

from schemas.aliases import Alias, Aliases
from web.address import split_address

_LISTEN: Final = "127.0.0.1:8081"
_GPUS: Final = ("cuda", "rocm", "metal", "sycl", "vulkan")


def _host(value: Any, before: Any) -> Any:
    """The port stays what it is."""
    _, port = split_address(str(before or _LISTEN))
    host = str(value)
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _port(value: Any, before: Any) -> Any:
    """The host stays what it is."""
    return f"{str(before or _LISTEN).rpartition(':')[0]}:{value}"


def _of_gpus(value: Any, before: Any) -> Any:
    """Of each kind of GPU that is not named by itself."""
    return {f"{kind}.mem": str(value) for kind in _GPUS} | cast(dict[str, Any], before or {})


def _text(value: Any, _before: Any) -> Any:
    return str(value)


def _plugins(value: Any, _before: Any) -> Any:
    """`ai.backend.accelerator.cuda_open` is `cuda`."""
    names = cast(list[Any], value) if isinstance(value, list) else str(value).split(",")
    return [str(name).strip().rpartition(".")[2].partition("_")[0] for name in names]


def _form(value: Any, _before: Any) -> Any:
    return "pretty" if value == "text" else value


NAMES: Final = {
    "id": Alias(("node",)),
    "node_name": Alias(("node",)),
    "namespace": Alias(("nats", "prefix")),
    "listen_host": Alias(("http", "listen"), _host, part=True),
    "port": Alias(("http", "listen"), _port, part=True, environ=False),  # PUNA_PORT is set for a Service named puna
    "log_level": Alias(("log", "level")),
    "log_format": Alias(("log", "format"), _form),
    "llama_server_startup_timeout_s": Alias(("engine", "startup_timeout_s")),
    "llama_server_probe_interval_s": Alias(("engine", "probe_interval_s")),
    "engine_orphan_grace_s": Alias(("engine", "orphan_grace_s")),
    "port_range": Alias(("engine", "port_range"), environ=False),
    "port_reuse_cooldown_sec": Alias(("engine", "port_cooldown_s")),
    "kernel_creation_concurrency": Alias(("instance_start_concurrency",)),
    "reserved_cpu": Alias(("reserved", "cpu"), _text),
    "reserved_mem": Alias(("reserved", "mem"), _text),
    "reserved_vram": Alias(("reserved",), _of_gpus, part=True),
    "reserved_disk": Alias(("store", "reserved_disk_bytes")),
    "memory_align_size": Alias(("memory_align_bytes",)),
    "allow_compute_plugins": Alias(("accelerators", "allow"), _plugins),
    "block_compute_plugins": Alias(("accelerators", "block"), _plugins),
    "models_root_dir": Alias(("store", "models_root_dir")),
    "download_retry": Alias(("downloads", "download_retry")),
    "concurrency": Alias(("downloads", "concurrency")),
    "multipart_concurrency": Alias(("downloads", "multipart_concurrency")),
    "multipart_threshold": Alias(("downloads", "multipart_threshold_bytes")),
    "num_download_worker": Alias(("downloads", "num_download_worker")),
    "hf_max_workers": Alias(("downloads", "hf_max_workers")),
    "hf_max_retries": Alias(("downloads", "hf_max_retries")),
    "hf_retry_interval": Alias(("downloads", "hf_retry_interval_s")),
    "download_timeout": Alias(("downloads", "download_timeout_s")),
    "pull_timeout": Alias(("downloads", "download_timeout_s")),
    "model_watch_resync_period": Alias(("desired", "resync_s")),
    "config_map_sync_interval": Alias(("desired", "kv_sync_interval_s")),
    "kv_sync_interval": Alias(("desired", "kv_sync_interval_s")),
}
IDLE: Final = {
    "temp_dir": "downloads grow beside their models, on the same disk, so that placing them costs nothing",
    "cleanup_temp": "what a download left is gone on with, and removed after store.partial_keep_s",
    "node_label_retry": "labels are part of each heartbeat, every 2 s, and need no retry",
    "max_concurrent_reconciles": "records are compared in one pass; downloads.num_download_worker bounds the work",
    "metrics_port": "/metrics is on the worker's own HTTP, http.listen",
}


def aliases() -> Aliases:
    """Those of a worker's settings, for one reading."""
    return Aliases(NAMES, IDLE)
