"""llama-server's long flags as fields of xllamacpp's `CommonParams`: one table, for the fields move between releases.

A test sets every row on the installed release. What is not in the table is refused by name: an engine that ignores a
flag would serve something else than was asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Read = Callable[[str], Any]


class BadFlag(ValueError):
    """A flag that does not exist here, lacks its value or has a wrong one. The text says which."""


@dataclass(frozen=True, slots=True)
class Row:
    """Flags with one meaning. `read` turns the value into the field's; a switch has no value but `constant`."""

    names: tuple[str, ...]
    field: str
    read: Read = str
    constant: Any = None
    sample: str = "1"
    """A value that a test can set."""
    variable: str = ""
    """The `LLAMA_ARG_` variable that gives the default, where its name is not the first flag's."""

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.constant is not None

    @property
    def environment(self) -> str:
        """Name of the variable with its default."""
        return f"LLAMA_ARG_{self.variable or self.names[0].upper().replace('-', '_')}"


def _library() -> Any:
    import xllamacpp

    return xllamacpp


def _choice(**values: str) -> Read:
    """A word as the member of an enumeration, `Enum.MEMBER`."""

    def read(text: str) -> Any:
        if (target := values.get(text.replace("-", "_"))) is None:
            raise ValueError(f"is one of {', '.join(name.replace('_', '-') for name in values)}")
        enum, member = target.split(".")
        return getattr(getattr(_library(), enum), member)

    return read


def _cache_type(text: str) -> Any:
    member = getattr(_library().ggml_type, f"GGML_TYPE_{text.upper()}", None)
    if member is None:
        raise ValueError("is a type such as f16, q8_0 or q4_0")
    return member


def _layers(text: str) -> int:
    return {"auto": -1, "all": -2}.get(text) or int(text)


def _template_values(text: str) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in json.loads(text).items()}


def _split(text: str) -> list[float]:
    shares = [float(share) for share in text.replace("/", ",").split(",")]
    room = len(_library().CommonParams().tensor_split)
    return shares + [0.0] * (room - len(shares))


def _aliases(text: str) -> set[str]:
    return {text}


def _hosts(text: str) -> list[str]:
    return [text]


def _truth(text: str) -> bool:
    if (value := {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}.get(text)) is None:
        raise ValueError("is on or off")
    return value


def _pair(name: str, field: str, *, off: str = "") -> tuple[Row, Row]:
    on = Row((name,), field, constant=True)
    return on, Row((off or f"no-{name}",), field, constant=False, variable="-")


_FLASH = _choice(
    on="llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED",
    off="llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED",
    auto="llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO",
)
_POOLING = _choice(
    none="llama_pooling_type.LLAMA_POOLING_TYPE_NONE",
    mean="llama_pooling_type.LLAMA_POOLING_TYPE_MEAN",
    cls="llama_pooling_type.LLAMA_POOLING_TYPE_CLS",
    last="llama_pooling_type.LLAMA_POOLING_TYPE_LAST",
    rank="llama_pooling_type.LLAMA_POOLING_TYPE_RANK",
)
_SPLIT_MODE = _choice(
    none="llama_split_mode.LLAMA_SPLIT_MODE_NONE",
    layer="llama_split_mode.LLAMA_SPLIT_MODE_LAYER",
    row="llama_split_mode.LLAMA_SPLIT_MODE_ROW",
    tensor="llama_split_mode.LLAMA_SPLIT_MODE_TENSOR",
)
_LOAD_MODE = _choice(
    auto="llama_load_mode.LLAMA_LOAD_MODE_AUTO",
    none="llama_load_mode.LLAMA_LOAD_MODE_NONE",
    mmap="llama_load_mode.LLAMA_LOAD_MODE_MMAP",
    mlock="llama_load_mode.LLAMA_LOAD_MODE_MLOCK",
)
_ROPE = _choice(
    none="llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_NONE",
    linear="llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_LINEAR",
    yarn="llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_YARN",
)
_REASONING = _choice(
    none="common_reasoning_format.COMMON_REASONING_FORMAT_NONE",
    auto="common_reasoning_format.COMMON_REASONING_FORMAT_AUTO",
    deepseek="common_reasoning_format.COMMON_REASONING_FORMAT_DEEPSEEK",
    deepseek_legacy="common_reasoning_format.COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY",
)
_NUMA = _choice(
    distribute="ggml_numa_strategy.GGML_NUMA_STRATEGY_DISTRIBUTE",
    isolate="ggml_numa_strategy.GGML_NUMA_STRATEGY_ISOLATE",
    numactl="ggml_numa_strategy.GGML_NUMA_STRATEGY_NUMACTL",
)

TABLE: Final[tuple[Row, ...]] = (
    Row(("model",), "model.path"),
    Row(("alias",), "model_alias", _aliases),
    Row(("host",), "hostnames", _hosts),
    Row(("port",), "port", int),
    Row(("ctx-size",), "n_ctx", int),
    Row(("parallel",), "n_parallel", int, variable="N_PARALLEL"),
    Row(("threads",), "cpuparams.n_threads", int),
    Row(("threads-batch",), "cpuparams_batch.n_threads", int),
    Row(("threads-http",), "n_threads_http", int),
    Row(("batch-size",), "n_batch", int, variable="BATCH"),
    Row(("ubatch-size",), "n_ubatch", int, variable="UBATCH"),
    Row(("gpu-layers", "n-gpu-layers"), "n_gpu_layers", _layers, variable="N_GPU_LAYERS"),
    Row(("main-gpu",), "main_gpu", int),
    Row(("split-mode",), "split_mode", _SPLIT_MODE, sample="none"),
    Row(("tensor-split",), "tensor_split", _split, sample="3,1"),
    Row(("override-tensor",), "tensor_buft_overrides", sample="exps=CPU"),
    Row(("flash-attn",), "flash_attn_type", _FLASH, sample="auto"),
    Row(("cache-type-k",), "cache_type_k", _cache_type, sample="q8_0"),
    Row(("cache-type-v",), "cache_type_v", _cache_type, sample="q8_0"),
    Row(("cache-ram",), "cache_ram_mib", int),
    Row(("cache-reuse",), "n_cache_reuse", int),
    Row(("ctx-checkpoints", "swa-checkpoints"), "n_ctx_checkpoints", int),
    Row(("slot-save-path",), "slot_save_path"),
    Row(("slot-prompt-similarity",), "slot_prompt_similarity", float),
    Row(("sleep-idle-seconds",), "sleep_idle_seconds", int),
    Row(("load-mode",), "load_mode", _LOAD_MODE, sample="mmap"),
    Row(("numa",), "numa", _NUMA, sample="isolate"),
    Row(("fit",), "fit_params", _truth, sample="off"),
    Row(("fit-ctx",), "fit_params_min_ctx", int),
    Row(("rope-scaling",), "rope_scaling_type", _ROPE, variable="ROPE_SCALING_TYPE", sample="yarn"),
    Row(("rope-freq-base",), "rope_freq_base", float),
    Row(("rope-freq-scale",), "rope_freq_scale", float),
    Row(("yarn-orig-ctx",), "yarn_orig_ctx", int),
    Row(("yarn-ext-factor",), "yarn_ext_factor", float),
    Row(("yarn-attn-factor",), "yarn_attn_factor", float),
    Row(("yarn-beta-slow",), "yarn_beta_slow", float),
    Row(("yarn-beta-fast",), "yarn_beta_fast", float),
    Row(("mmproj",), "mmproj.path"),
    Row(("pooling",), "pooling_type", _POOLING, sample="mean"),
    Row(("embd-normalize",), "embd_normalize", int),
    Row(("chat-template",), "chat_template"),
    Row(("chat-template-kwargs",), "default_template_kwargs", _template_values, sample='{"enable_thinking": false}'),
    Row(("reasoning-format",), "reasoning_format", _REASONING, sample="auto", variable="THINK"),
    Row(("reasoning-budget",), "sampling.reasoning_budget_tokens", int, variable="THINK_BUDGET"),
    Row(("predict", "n-predict"), "n_predict", int, variable="N_PREDICT"),
    Row(("keep",), "n_keep", int),
    Row(("seed",), "sampling.seed", int),
    Row(("temp", "temperature"), "sampling.temp", float, variable="TEMPERATURE"),
    Row(("top-k",), "sampling.top_k", int),
    Row(("top-p",), "sampling.top_p", float),
    Row(("min-p",), "sampling.min_p", float),
    Row(("repeat-penalty",), "sampling.penalty_repeat", float),
    Row(("repeat-last-n",), "sampling.penalty_last_n", int),
    Row(("presence-penalty",), "sampling.penalty_present", float),
    Row(("frequency-penalty",), "sampling.penalty_freq", float),
    Row(("log-verbosity", "verbosity"), "verbosity", int),
    Row(("mmap",), "load_mode", lambda _: _LOAD_MODE("mmap"), constant="mmap"),
    Row(("no-mmap",), "load_mode", lambda _: _LOAD_MODE("none"), constant="none", variable="-"),
    Row(("mlock",), "load_mode", lambda _: _LOAD_MODE("mlock"), constant="mlock"),
    *_pair("metrics", "endpoint_metrics"),
    *_pair("slots", "endpoint_slots"),
    *_pair("webui", "ui"),
    *_pair("ui", "ui"),
    *_pair("jinja", "use_jinja"),
    *_pair("cont-batching", "cont_batching"),
    *_pair("context-shift", "ctx_shift"),
    *_pair("cache-prompt", "cache_prompt"),
    *_pair("cache-idle-slots", "cache_idle_slots"),
    *_pair("kv-unified", "kv_unified"),
    *_pair("kv-offload", "no_kv_offload"),
    *_pair("prefill-assistant", "prefill_assistant"),
    *_pair("mmproj-offload", "mmproj_use_gpu"),
    *_pair("warmup", "warmup"),
    *_pair("swa-full", "swa_full"),
    *_pair("special", "special"),
    *_pair("check-tensors", "check_tensors"),
    *_pair("embeddings", "embedding"),
    *_pair("embedding", "embedding"),
)
_INVERTED: Final = frozenset({"no_kv_offload"})
_BY_NAME: Final = {name: row for row in TABLE for name in row.names}
"""By flag, without the dashes."""


def apply(argv: Sequence[str], environ: Mapping[str, str], params: Any) -> None:
    """Set `params` (a `CommonParams`) from flags, over defaults from `LLAMA_ARG_` variables. Raises `BadFlag`."""
    for row in TABLE:
        if (value := environ.get(row.environment)) is not None and (not row.is_switch or value in ("1", "true", "on")):
            _set(params, row, value, row.environment)
    for name, value in _words(argv):
        _one(params, name, value)
    params.api_keys = [key for key in environ.get("LLAMA_API_KEY", "").split(",") if key]


def _words(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    words = iter(argv)
    for word in words:
        name = word.removeprefix("--")
        if not word.startswith("--"):
            raise BadFlag(f"invalid argument: {word}: write long flags")
        row = _BY_NAME.get(name)
        takes_none = (row is not None and row.is_switch) or name in ("rerank", "reranking")
        value = None if takes_none else next(words, None)
        if value is None and not takes_none:
            raise BadFlag(
                f"invalid argument: {word} needs a value" if row else f"invalid argument: {word}: not known here"
            )
        yield name, value


def _one(params: Any, name: str, value: str | None) -> None:
    if name in ("rerank", "reranking"):
        params.embedding, params.pooling_type = True, _POOLING("rank")
    elif name == "device":
        _device(params, value or "")
    elif name == "chat-template-file":
        params.chat_template = Path(value or "").read_text()
    elif (row := _BY_NAME.get(name)) is not None:
        _set(params, row, value or "", f"--{name}")
    else:
        raise BadFlag(f"invalid argument: --{name}: the embedded engine does not have it; use a llama-server")


def _device(params: Any, value: str) -> None:
    if value != "none":
        raise BadFlag("invalid argument: --device: the embedded engine knows only 'none'; use a llama-server")
    params.n_gpu_layers = 0


def _set(params: Any, row: Row, text: str, shown: str) -> None:
    *inner, field = row.field.split(".")
    for part in inner:
        params = getattr(params, part)
    if isinstance(row.constant, bool):
        setattr(params, field, row.constant is not (field in _INVERTED))
        return
    try:
        setattr(params, field, row.read(text))
    except (ValueError, TypeError, AssertionError) as error:
        raise BadFlag(f"invalid argument: {shown} {text[:80]!r} {error}") from error


def default_threads() -> int:
    """Threads when none are given: those of this process's processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
