"""Engines are found in order, and each is proved before it is taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from worker import finder
from worker.finder import EngineMissing, find_engine

GPU = "Available devices:\n  CUDA0: NVIDIA L4 (22478 MiB, 22000 MiB free)\n  Vulkan1: AMD (8192 MiB, 8000 MiB free)"


@pytest.fixture(autouse=True)
def nothing_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "FOLDERS", ())
    monkeypatch.setattr(finder, "EMBEDDED", ("/nonexistent/python", "-m", "worker.embedded"))


def program(
    folder: Path, *, says: str = "version: 4242 (abc)", devices: str = "Available devices:", code: int = 0
) -> Path:
    """A llama-server that answers so."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "llama-server"
    path.write_text(
        f"#!/bin/sh\nif [ $1 = --version ]; then echo \"{says}\" >&2; else echo '{devices}'; fi\nexit {code}\n"
    )
    path.chmod(0o755)
    return path


def path_of(*folders: Path) -> dict[str, str]:
    return {"PATH": ":".join(["/usr/bin", "/bin", *(str(folder) for folder in folders)])}


async def test_the_configured_one_comes_first(tmp_path: Path) -> None:
    mine = program(tmp_path / "mine")
    program(tmp_path / "path", devices=GPU)
    found = await find_engine(mine, path_of(tmp_path / "path") | {"LLAMA_SERVER_BIN_PATH": "/nonexistent"})
    assert found.argv == (str(mine),)
    assert (found.kind, found.version, found.devices) == ("llama-server", "4242 (abc)", ())


async def test_the_variable_comes_before_path(tmp_path: Path) -> None:
    named = program(tmp_path / "named")
    environ = path_of(tmp_path / "path") | {"LLAMA_SERVER_BIN_PATH": str(named)}
    program(tmp_path / "path")
    assert (await find_engine(None, environ)).argv == (str(named),)


async def test_a_chosen_one_that_does_not_run_is_an_error_and_not_replaced(tmp_path: Path) -> None:
    program(tmp_path / "path")
    with pytest.raises(EngineMissing, match=r"/nonexistent \(configured\): cannot be run: No such file"):
        await find_engine(Path("/nonexistent"), path_of(tmp_path / "path"))
    with pytest.raises(EngineMissing, match="LLAMA_SERVER_BIN_PATH"):
        await find_engine(None, path_of(tmp_path / "path") | {"LLAMA_SERVER_BIN_PATH": "/nonexistent"})


async def test_one_that_sees_a_gpu_wins_over_an_earlier_one_that_does_not(tmp_path: Path) -> None:
    program(tmp_path / "cpu")
    gpu = program(tmp_path / "gpu", devices=GPU)
    found = await find_engine(None, path_of(tmp_path / "cpu", tmp_path / "gpu"))
    assert found.argv == (str(gpu),)
    assert found.devices == ("cuda:0", "vulkan:1")


async def test_one_that_does_not_run_is_passed_over_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program(tmp_path / "broken", code=132)
    fine = program(tmp_path / "fine")
    assert (await find_engine(None, path_of(tmp_path / "broken", tmp_path / "fine"))).argv == (str(fine),)
    assert any("another CPU" in str(getattr(record, "reason", "")) for record in caplog.records)


@pytest.mark.parametrize(
    ("says", "code", "words"),
    [
        ("", 132, "built for another CPU"),
        ("x: error while loading shared libraries: libcuda.so.1: cannot open", 127, "NVIDIA's driver"),
        ("x: version 'GLIBC_2.38' not found (required by x)", 1, "built for a newer system"),
        ("something else", 3, "exit code 3; it said: something else"),
    ],
)
async def test_why_a_candidate_does_not_run_is_said(tmp_path: Path, says: str, code: int, words: str) -> None:
    with pytest.raises(EngineMissing, match=words):
        await find_engine(program(tmp_path, says=says, code=code), path_of())


async def test_a_file_for_another_system_is_said_as_such(tmp_path: Path) -> None:
    path = tmp_path / "llama-server"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    with pytest.raises(EngineMissing, match="cannot be run: Exec format error"):
        await find_engine(path, path_of())


async def test_one_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "PROOF_TIMEOUT_S", 0.3)
    path = tmp_path / "llama-server"
    path.write_text("#!/bin/sh\nexec sleep 600\n")
    path.chmod(0o755)
    with pytest.raises(EngineMissing, match=r"no answer to --version in 0\.3 s"):
        await find_engine(path, path_of())


async def test_without_any_engine_the_one_install_line_is_given(tmp_path: Path) -> None:
    program(tmp_path / "broken", code=132)
    with pytest.raises(EngineMissing) as caught:
        await find_engine(None, path_of(tmp_path / "broken"))
    assert "install one: " in caught.value.message
    assert "another CPU" in caught.value.message
    assert caught.value.exit_code == 69


async def test_the_embedded_engine_is_the_last_to_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "EMBEDDED", (sys.executable, "-m", "worker.embedded"))
    monkeypatch.chdir(Path(__file__).parents[2])
    found = await find_engine(None, path_of())
    assert found.kind == "embedded"
    assert "xllamacpp" in found.version
    cpu = program(tmp_path / "cpu")
    assert (await find_engine(None, path_of(tmp_path / "cpu"))).argv == (str(cpu),)
