"""Engines of an earlier life of this worker that may be taken over as they run.

    found = adoptable(state_dir)               # what runs; everything else of that life is ended
    engine = Engine(each.engine_id, spec, …)   # the spec that would be started now
    await engine.adopt(each)                   # it is `ready`, or it was ended and the engine is `stopped`

An engine is taken over only if it is, by its fingerprint, what would be started now: same build, model file, flags
and pinned environment. How many tokens of context fitted when it was started is not part of that.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from worker.enginespec import EngineBinary, EngineSpec
from worker.launch import engine_argv, engine_environment
from worker.mindersocket import sweep
from worker.modelfile import shards
from worker.orphans import Note, Notebook
from worker.remains import end_remains, is_same

log = logging.getLogger(__name__)

_SECRET_FREE: Final = ""
_TELLING: Final = re.compile(r"^(LLAMA_|GGML_|CUDA_|HIP_|ROCR_|HSA_|ONEAPI_|ZE_|SYCL_|VK_|OMP_|LD_|DYLD_)")
"""Variables that change what an engine does. Its key is new at each start and does not count."""
_OWN: Final = frozenset(("LLAMA_API_KEY",))


@dataclass(frozen=True, slots=True)
class Adoptable:
    """An engine that runs without a worker."""

    engine_id: str
    note: Note
    state_dir: Path

    @property
    def model(self) -> str:
        """Its alias."""
        return self.note.model

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it is."""
        return self.note.devices

    def end(self) -> list[int]:
        """End it, for nobody wants it; waits until it is gone, returns the pids. Blocks."""
        pids = end_remains(self.note.remains)
        Path(self.note.socket).unlink(missing_ok=True)
        Notebook(self.state_dir / "engines").erase(self.engine_id)
        return pids


def adoptable(state_dir: Path) -> list[Adoptable]:
    """Engines that an earlier life left ready; whatever else it left is ended, and gone when this returns.

    Blocks; call it once, before any engine is made. Engines of a worker that lives are neither told nor ended.
    """
    notebook = Notebook(state_dir / "engines")
    noted = notebook.notes().items()
    found = [Adoptable(engine_id, note, state_dir) for engine_id, note in noted if note is not None and _fit(note)]
    ended = notebook.reap(keep=frozenset(each.engine_id for each in found))
    if ended:
        log.info("engines_ended", extra={"event": "engines_ended", "pids": ended})
    sweep()
    return found


def _fit(note: Note) -> bool:
    if note.worker_lives or not (note.ready and note.runs and note.fingerprint):
        return False
    return is_same(note.minder_pid, note.minder_started_at) and Path(note.socket).is_socket()


def fingerprint(binary: EngineBinary, spec: EngineSpec, environ: Mapping[str, str] = os.environ) -> str:
    """What would be started for `spec`, in 64 hexadecimal digits. Raises `OSError` if a model file is not there."""
    environment = engine_environment(environ, spec, key=_SECRET_FREE, tag=_SECRET_FREE)
    pinned = {
        name: value
        for name, value in environment.items()
        if (name in spec.environment or _TELLING.search(name)) and name not in _OWN
    }
    program = shutil.which(binary.argv[0]) or binary.argv[0]
    parts = {
        "program": [binary.kind, binary.version, _state(Path(program))],
        "files": [_state(path) for path in (*shards(spec.path), *_named_files(spec))],
        "argv": engine_argv(binary, spec, port=0),
        "devices": spec.devices,
        "environment": pinned,
    }
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _named_files(spec: EngineSpec) -> list[Path]:
    """Files that flags name beside the model's own: projectors, draft models, adapters, templates."""
    values = (value for value in spec.flags.values() if isinstance(value, str | list))
    words = (word for value in values for word in ([value] if isinstance(value, str) else value))
    return [Path(word) for word in words if "." in word and Path(word).is_file()]


def _state(path: Path) -> tuple[str, int, int]:
    stats = path.stat()
    return str(path.resolve()), stats.st_size, stats.st_mtime_ns
