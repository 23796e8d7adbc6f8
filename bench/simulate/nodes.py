"""The nodes of one simulation: each is the worker's own composition, on a simulated host."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from bench.simulate import modelfile
from bench.simulate.devices import Gpus
from bench.simulate.journal import Journal
from bench.simulate.process import Host
from bench.simulate.settings import Behaviour, Simulation
from bench.simulate.times import GIB
from web.keys import Keyring
from worker.enginespec import EngineBinary
from worker.node import Node
from worker.settings import WorkerSettings

PORTS: Final = (20000, 29999)
"""For engines: beside the product's own range, and wide, for every engine of the fleet has one."""
PORT_COOLDOWN_S: Final = 0.0


def write_models(folder: Path, models: dict[str, Behaviour]) -> dict[str, Path]:
    """A file for each model; those that are there already are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name.replace('/', '_')}.gguf" for name in models}
    for name, path in paths.items():
        if not path.exists():
            fresh = modelfile.write(path.with_suffix(".new"), models[name].file_bytes)
            fresh.replace(path)
    return paths


def worker_settings(simulation: Simulation, node: str, nats_url: str, folder: Path) -> WorkerSettings:
    """The settings of one worker. Raises `ValidationError` for a setting that there is not."""
    paths = write_models(folder / "models", simulation.models)
    models = [
        {"model": name, "path": str(paths[name]), "context_tokens": 512, "slots": like.slots or simulation.slots}
        | like.profile
        for name, like in simulation.models.items()
    ]
    given: dict[str, Any] = {
        "node": node,
        "nats": {"url": nats_url},
        "models": models,
        "slots": simulation.slots,
        "http": {"listen": "127.0.0.1:0"},
        "state_dir": str(folder / node),
        "reserved_memory_bytes": 0,
        "engine": {"port_range": PORTS, "port_cooldown_s": PORT_COOLDOWN_S},
    }
    return WorkerSettings.model_validate(_merged(given, simulation.worker))


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(under[key], value) for key, value in over.items() if _both_mappings(under.get(key), value)}
    return under | over | both


def _both_mappings(one: object, other: object) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)


class SimulatedNodes:
    """Up while the context is open. `names` are theirs."""

    def __init__(self, simulation: Simulation, nats_url: str, folder: Path, journal: Journal) -> None:
        first = simulation.first
        self.names = [simulation.node_name(number) for number in range(first, first + simulation.nodes)]
        self._simulation = simulation
        self._nats_url = nats_url
        self._folder = folder
        self._journal = journal
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SimulatedNodes:
        async with AsyncExitStack() as stack:
            for name in self.names:
                node = self._node(name)
                stack.push_async_callback(node.stop)
                await node.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _node(self, name: str) -> Node:
        simulation = self._simulation
        gpus = Gpus(name, simulation.devices, int(simulation.device_gib * GIB))
        host = Host(name, gpus, simulation.models, simulation.seed, self._journal)
        settings = worker_settings(simulation, name, self._nats_url, self._folder)
        binary = EngineBinary("llama-server", ("simulated-engine",), "simulated", devices=gpus.names)
        return Node(settings, Keyring([]), binary, host)
