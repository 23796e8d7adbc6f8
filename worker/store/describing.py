"""What a view's files say of the model, before an engine sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from worker.gguf import BadGguf
from worker.modelfile import ModelFile, describe
from worker.store.errors import BadModelFile
from worker.store.manifest import HeldFile

Value = str | int | bool | list[str] | None
_OTHER_FORMATS: Final = (".safetensors", ".json", ".bin", ".txt")


def described_copy(view: Path, main: str, files: Sequence[HeldFile]) -> dict[str, Value]:
    """The description of the main file, and of what its projector adds. All are read. Raises `BadModelFile`."""
    told = {file.path: _read(view / file.path) for file in files if not file.path.endswith(_OTHER_FORMATS)}
    if main not in told:
        return {}
    extra = [each for file in files if file.role == "projector" for each in told[file.path].capabilities]
    return _config(told[main], extra)


def _read(path: Path) -> ModelFile:
    try:
        return describe(path)
    except BadGguf as error:
        raise BadModelFile(f"{path.name} cannot be loaded: {error}") from error


def _config(told: ModelFile, extra: Sequence[str]) -> dict[str, Value]:
    return {
        "architecture": told.architecture,
        "name": told.name,
        "parameters": told.parameters,
        "quantisation": told.quantisation,
        "tensor_bytes": told.tensor_bytes,
        "context_tokens": told.context_tokens,
        "embedding_length": told.embedding_length,
        "layers": len(told.layers),
        "vocabulary": told.vocabulary,
        "chat_template": told.chat_template,
        "capabilities": [*told.capabilities, *(each for each in extra if each not in told.capabilities)],
    }
