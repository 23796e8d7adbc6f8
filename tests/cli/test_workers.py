"""What `puna up` tells its workers, as a worker reads it."""

from __future__ import annotations

from pathlib import Path

from gateway.cli.demo import DEMO_TEMPLATE
from gateway.cli.model import LocalModel
from gateway.cli.workers import WorkerOptions, worker_command, write_settings
from worker.settings import settings_from


def read_back(options: WorkerOptions, **environ: str):
    return settings_from(write_settings(options), environ, {})


def test_a_worker_reads_the_model_with_its_flags(tmp_path) -> None:
    model = LocalModel("smollm2", tmp_path / 'odd: "näme" #1.gguf', {"chat-template-file": str(DEMO_TEMPLATE)})
    [served] = read_back(WorkerOptions((model,), 4, None, tmp_path)).models
    assert (served.model, served.path) == ("smollm2", model.path)
    assert served.flags == {"chat-template-file": str(DEMO_TEMPLATE)}
    assert Path(str(served.flags["chat-template-file"])).is_file()


def test_slots_and_engine_are_said_where_they_count_for_more_than_the_environment(tmp_path) -> None:
    options = WorkerOptions((LocalModel("m", tmp_path / "m.gguf"),), 7, tmp_path / "llama-server", tmp_path)
    words = worker_command("worker-1", tmp_path / "worker.yaml", options)
    assert words[words.index("--slots") + 1] == "7"
    assert words[words.index("--engine") + 1] == str(tmp_path / "llama-server")
    assert words[words.index("--state-dir") + 1] == str(tmp_path / "worker-1")


def test_without_an_engine_the_workers_look_for_one(tmp_path) -> None:
    assert "--engine" not in worker_command(
        "w", tmp_path, WorkerOptions((LocalModel("m", tmp_path),), 1, None, tmp_path)
    )
