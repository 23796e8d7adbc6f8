"""Fixtures for all tests: real servers, never mocks."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

FAKES = Path(__file__).parent / "fakes"

# Read here, before anything else runs: Python 3.11 counts the depth of the stack wrongly where hypothesis compiles its
# own code late in a run. A time limit for each example says only how busy the machine is.
hypothesis.settings.register_profile("puna", deadline=None)
hypothesis.settings.load_profile("puna")

# Whoever is started in the background of a script inherits an ignored SIGINT, and so would all programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def load_fake(name: str) -> ModuleType:
    """A program of tests/fakes as a module (tests are no packages)."""
    known = sys.modules.get(f"fakes_{name}")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(f"fakes_{name}", FAKES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"fakes_{name}"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake() -> Callable[[str], ModuleType]:
    """`fake("natsd")` → a program of tests/fakes as a module, for fixtures that outlive a test."""
    return load_fake


@pytest.fixture(scope="session")
def small_model() -> Path:
    """The real small model: out of the cache (`PUNA_CACHE_DIR`), fetched once. No network and no cache is a failure."""
    from gateway.cli.demo import demo_model
    from gateway.cli.say import Teller

    return demo_model(Teller())


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """`write_model(path, pairs)` → a small whole GGUF file (see tests/fakes/gguf.py)."""
    return load_fake("gguf").write


@pytest.fixture
def new_nats_server(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Factory: `new_nats_server(config="", jetstream=True)` → a running server (see tests/fakes/natsd.py)."""
    natsd = load_fake("natsd")
    started: list[Any] = []

    def make(config: str = "", **options: Any) -> Any:
        server = natsd.NatsServer(tmp_path / f"nats-{len(started)}", config, **options)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.kill()


@pytest.fixture
def nats_server(new_nats_server: Callable[..., Any]) -> Any:
    """One running nats-server with JetStream: `.url .kill() .start() .pause() .resume() .restart()`."""
    return new_nats_server()
