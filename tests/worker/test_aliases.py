"""The names and values that users of other node agents write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.config import ConfigError
from worker.aliases import IDLE, NAMES, aliases
from worker.settings import WorkerSettings, settings_from

CASES: dict[str, tuple[str, str, Any]] = {
    "id": ("gpu7", "node", "gpu7"),
    "node_name": ("gpu7", "node", "gpu7"),
    "namespace": ("ome", "nats.prefix", "ome"),
    "listen_host": ("127.0.0.2", "http.listen", "127.0.0.2:8081"),
    "port": ("8080", "http.listen", "127.0.0.1:8080"),
    "log_level": ("debug", "log.level", "debug"),
    "log_format": ("text", "log.format", "pretty"),
    "llama_server_startup_timeout_s": ("45", "engine.startup_timeout_s", 45),
    "llama_server_probe_interval_s": ("0.25", "engine.probe_interval_s", 0.25),
    "engine_orphan_grace_s": ("1m", "engine.orphan_grace_s", 60),
    "port_range": ("[31000, 32000]", "engine.port_range", (31000, 32000)),
    "port_reuse_cooldown_sec": ("5", "engine.port_cooldown_s", 5),
    "kernel_creation_concurrency": ("2", "instance_start_concurrency", 2),
    "reserved_cpu": ("1", "reserved", {"cpu": "1"}),
    "reserved_mem": ("1G", "reserved", {"mem": "1G"}),
    "reserved_vram": ("5%", "reserved", {f"{kind}.mem": "5%" for kind in ("cuda", "rocm", "metal", "sycl", "vulkan")}),
    "reserved_disk": ("8G", "store.reserved_disk_bytes", 8 << 30),
    "memory_align_size": ("16M", "memory_align_bytes", 16 << 20),
    "allow_compute_plugins": ("[ai.backend.accelerator.cuda_open]", "accelerators.allow", ("cuda",)),
    "block_compute_plugins": ("[rocm]", "accelerators.block", ("rocm",)),
    "models_root_dir": ("/mnt/models", "store.models_root_dir", Path("/mnt/models")),
    "download_retry": ("5", "downloads.download_retry", 5),
    "concurrency": ("2", "downloads.concurrency", 2),
    "multipart_concurrency": ("2", "downloads.multipart_concurrency", 2),
    "multipart_threshold": ("200MB", "downloads.multipart_threshold_bytes", 200 << 20),
    "num_download_worker": ("2", "downloads.num_download_worker", 2),
    "hf_max_workers": ("2", "downloads.hf_max_workers", 2),
    "hf_max_retries": ("15", "downloads.hf_max_retries", 15),
    "hf_retry_interval": ("30s", "downloads.hf_retry_interval_s", 30),
    "download_timeout": ("2h", "downloads.download_timeout_s", 7200),
    "pull_timeout": ("7200", "downloads.download_timeout_s", 7200),
    "model_watch_resync_period": ("10m", "desired.resync_s", 600),
    "config_map_sync_interval": ("30s", "desired.kv_sync_interval_s", 30),
    "kv_sync_interval": ("30s", "desired.kv_sync_interval_s", 30),
}


def setting(settings: WorkerSettings, path: str) -> Any:
    found: Any = settings
    for part in path.split("."):
        found = getattr(found, part)
    return found


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **given: Any) -> WorkerSettings:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    return settings_from(config, environ or {}, given)


def test_every_other_name_has_a_case() -> None:
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_of_another_agent_means_its_setting(tmp_path: Path, name: str) -> None:
    value, path, wanted = CASES[name]
    assert setting(read(tmp_path, f"{name}: {value}\n"), path) == wanted
    assert setting(read(tmp_path, f"{name.replace('_', '-')}: {value}\n"), path) == wanted
    if NAMES[name].environ:
        assert setting(settings_from(None, {f"PUNA_{name.upper()}": value}, {}), path) == wanted


def test_a_layer_above_counts_more_whatever_name_it_uses(tmp_path: Path) -> None:
    text = "listen_host: 127.0.0.2\nport: 9000\nreserved_cpu: 1\nreserved: {mem: 1G}\nhf_retry_interval: 30s\n"
    settings = read(tmp_path, text, {"PUNA_LISTEN_HOST": "::1", "PUNA_RESERVED_CPU": "2"})
    assert (settings.http.listen, settings.reserved) == ("[::1]:9000", {"cpu": "2", "mem": "1G"})
    above = {"PUNA_DOWNLOADS__HF_RETRY_INTERVAL_S": "5s"}
    assert read(tmp_path, text, above).downloads.hf_retry_interval_s == 5
    assert read(tmp_path, text, http={"listen": "127.0.0.1:1"}).http.listen == "127.0.0.1:1"


def test_in_one_file_the_settings_own_name_counts(tmp_path: Path) -> None:
    assert (
        read(tmp_path, "hf_retry_interval: 30s\ndownloads: {hf_retry_interval_s: 4s}\n").downloads
        == read(tmp_path, "downloads: {hf_retry_interval_s: 4}\n").downloads
    )


def test_names_that_do_nothing_are_accepted_and_told_with_the_reason(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("temp_dir: /tmp/x\n")
    names = aliases()
    assert settings_from(config, {"PUNA_NODE_LABEL_RETRY": "5"}, {"node": "n"}, names).node == "n"
    assert set(names.met_idle) == {"temp_dir", "node_label_retry"}
    assert all(len(reason) > 20 for reason in IDLE.values())


def test_a_wrong_value_is_told_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:2: downloads\.hf_retry_interval_s: .*number"):
        read(tmp_path, "node: n\nhf_retry_interval: soon\n")


def test_rates_may_have_a_unit(tmp_path: Path) -> None:
    text = "downloads: {bytes_per_s: 10M, per_source_bytes_per_s: {hf: 1M}}\npeers: {upload_bytes_per_s: 5MB}\n"
    settings = read(tmp_path, text)
    assert (settings.downloads.bytes_per_s, settings.peers.upload_bytes_per_s) == (10 << 20, 5 << 20)
    assert settings.downloads.per_source_bytes_per_s == {"hf": 1 << 20}


def test_the_namespace_of_a_pod_is_the_prefix_unless_one_is_set() -> None:
    assert settings_from(None, {"POD_NAMESPACE": "ome"}, {}).nats.prefix == "ome"
    assert settings_from(None, {"POD_NAMESPACE": "ome", "PUNA_PREFIX": "lab"}, {}).nats.prefix == "lab"


def test_the_variable_of_a_service_named_puna_is_no_port() -> None:
    assert settings_from(None, {"PUNA_PORT": "tcp://10.0.0.1:8080"}, {}).http.listen == "127.0.0.1:8081"
