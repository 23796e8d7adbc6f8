"""What a view's files say of the model, before an engine sees them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from worker.gguf import BadGguf
from worker.hubconfig import BadConfig, HubConfig, read_config
from worker.memory import Serving, cache_bytes, plan
from worker.modelfile import ModelFile, describe
from worker.safetensors import BadSafetensors, Safetensors, read_safetensors
from worker.store.errors import BadModelFile
from worker.store.manifest import HeldFile

log = logging.getLogger(__name__)
Value = str | int | bool | list[str] | None
CONTEXT_TOKENS: Final = 8192
"""Of the memory estimate, unless the model was made for less: what an engine gets that is not told otherwise."""
_MOST: Final = (1 << 63) - 1
_BESIDE: Final = ("projector", "draft")
_OTHER_FORMATS: Final = (".safetensors", ".json", ".bin", ".txt", ".jinja", ".md", ".model")
_API: Final = {
    "chat": ("OPENAI_V1_CHAT_COMPLETIONS", "OPENAI_V1_RESPONSES", "ANTHROPIC_V1_MESSAGES"),
    "completion": ("OPENAI_V1_COMPLETIONS",),
    "embedding": ("OPENAI_V1_EMBEDDINGS",),
    "rerank": ("JINA_V1_RERANK",),
    "audio": ("OPENAI_V1_AUDIO_TRANSCRIPTIONS",),
}
"""Capability → the HTTP interfaces that serve it, in the words of the reference."""


def described_copy(view: Path, main: str, files: Sequence[HeldFile]) -> dict[str, Value]:
    """The description of the main file, of what is beside it, and of what its projector adds. All that an engine is
    given are read. Raises `BadModelFile`."""
    ours = [file for file in files if file.role in _BESIDE or file.path == main]
    told = {file.path: _read(view / file.path) for file in ours if not file.path.endswith(_OTHER_FORMATS)}
    projectors = [told[file.path] for file in ours if file.role == "projector" and file.path in told]
    hub = _hub_config(view, files)
    if main in told:
        return _of_gguf(told[main], projectors, hub)
    return _of_safetensors(view, files, hub)


def api_capabilities(capabilities: Iterable[str]) -> list[str]:
    """The HTTP interfaces of a model that can do these."""
    return [name for each in capabilities for name in _API.get(each, ())]


def _read(path: Path) -> ModelFile:
    try:
        return describe(path)
    except BadGguf as error:
        raise BadModelFile(f"{path.name} cannot be loaded: {error}") from error
    except FileNotFoundError as error:
        raise BadModelFile(f"{path.name} cannot be loaded: a part of it is missing") from error


def _of_gguf(told: ModelFile, projectors: Sequence[ModelFile], hub: HubConfig) -> dict[str, Value]:
    extra = [each for projector in projectors for each in projector.capabilities]
    can = [*told.capabilities, *(each for each in dict.fromkeys(extra) if each not in told.capabilities)]
    return {
        "format": "gguf",
        "architecture": told.architecture,
        "name": told.name,
        "parameters": told.parameters,
        "quantisation": told.quantisation,
        "tensor_bytes": told.tensor_bytes,
        "context_tokens": told.context_tokens or hub.context_tokens,
        "embedding_length": told.embedding_length,
        "layers": len(told.layers),
        "vocabulary": told.vocabulary,
        "chat_template": told.chat_template,
        "capabilities": list[str](can),
        "api_capabilities": api_capabilities(can),
        **_memory(told, sum(projector.tensor_bytes for projector in projectors)),
    }


def _memory(told: ModelFile, projector_bytes: int) -> dict[str, Value]:
    """What one engine with one slot takes, and what a token of context does."""
    context = min(told.context_tokens or CONTEXT_TOKENS, CONTEXT_TOKENS)
    whole = plan(told, Serving(context_tokens=context, slots=1, projector_bytes=projector_bytes))
    return {
        "memory_bytes": min(whole.total_bytes, _MOST),
        "memory_context_tokens": context,
        "cache_bytes": min(whole.cache_bytes, _MOST),
        "compute_bytes": min(whole.compute_bytes, _MOST),
        "cache_bytes_per_token": min(cache_bytes(told, Serving(context_tokens=256, slots=1)) // 256, _MOST),
    }


# -- other formats: no engine loads them -------------------------------------------------------------------------------
def _hub_config(view: Path, files: Sequence[HeldFile]) -> HubConfig:
    path = next((view / file.path for file in files if Path(file.path).name == "config.json"), None)
    if path is None:
        return HubConfig()
    try:
        return read_config(path)
    except (BadConfig, OSError) as error:
        log.info("config_unread", extra={"event": "config_unread", "file": path.name, "reason": str(error)})
        return HubConfig()


def _of_safetensors(view: Path, files: Sequence[HeldFile], hub: HubConfig) -> dict[str, Value]:
    headers = [_header(view / file.path) for file in files if file.path.endswith(".safetensors")]
    known = [header for header in headers if header is not None]
    config: dict[str, Value] = {
        "format": "safetensors" if headers else "other",
        "architecture": hub.model_type or hub.architecture,
        "quantisation": hub.quantisation or (known[0].dtype if known else hub.dtype),
        "context_tokens": hub.context_tokens,
        "embedding_length": hub.embedding_length,
        "layers": hub.layers,
        "vocabulary": hub.vocabulary,
        "capabilities": list[str](hub.capabilities),
        "api_capabilities": api_capabilities(hub.capabilities),
    }
    if known and len(known) == len(headers):
        config["parameters"] = sum(header.parameters for header in known)
        config["tensor_bytes"] = sum(header.tensor_bytes for header in known)
    return {name: value for name, value in config.items() if value not in (None, [])}


def _header(path: Path) -> Safetensors | None:
    try:
        return read_safetensors(path)
    except (BadSafetensors, OSError) as error:
        log.info("header_unread", extra={"event": "header_unread", "file": path.name, "reason": str(error)})
        return None
