"""A profile that came over NATS is anybody's: it changes how a model is computed, and reaches nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.model import Profile
from worker.enginespec import EngineBinary, EngineSpec
from worker.flags import REFUSED, FlagRefused
from worker.launch import engine_argv
from worker.remoteflags import ALLOWED, TEXT_LIMIT_CHARS, check_remote

_FILES = """lora lora-scaled control-vector control-vector-scaled model-draft mmproj model-vocoder chat-template-file
grammar-file json-schema-file slot-save-path log-file media-path path lookup-cache-static lookup-cache-dynamic
api-key-file ssl-key-file ssl-cert-file file webui-config-file models-preset mcp-servers-config binary-file models-dir
"""
_DOORS = """host port rpc tools agent api-key api-prefix hf-repo hf-file hf-token model-url mmproj-url docker-repo props
slots metrics webui-mcp-proxy ui reuse-port alias"""
FILES, DOORS = _FILES.split(), _DOORS.split()
STRANGE = ["a-flag-of-next-year", "no-such", "model", "parallel", "ctx-size", "verbose"]


@pytest.mark.parametrize("flag", sorted({*FILES, *DOORS, *STRANGE, *REFUSED}))
def test_files_doors_and_strangers_are_refused_in_any_spelling(flag: str) -> None:
    for spelling in (flag, f"--{flag}", flag.replace("-", "_")):
        with pytest.raises(FlagRefused, match="may not be set"):
            check_remote({spelling: "/etc/passwd"})


def test_what_changes_the_computing_is_allowed() -> None:
    check_remote({"--flash-attn": "on", "no-mmap": True, "cache_type_k": "q8_0", "n-gpu-layers": "-1", "top-k": "40"})
    check_remote({"override-tensor": ["exps=CPU", "x=CUDA0"], "chat-template": "chatml", "warmup": False})
    assert not ALLOWED & set(REFUSED)


@pytest.mark.parametrize(
    "flags",
    [
        {"jinja": "--rpc"},
        {"mlock": ["--lora", "/etc/passwd"]},
        {"temp": "--tools"},
        {"special": "-m"},
        {"chat-template": "x" * (TEXT_LIMIT_CHARS + 1)},
        {"chat-template": "x\0y"},
        {"log-verbosity": "5"},
    ],
)
def test_a_value_is_never_a_flag_of_its_own(flags: dict[str, Any]) -> None:
    with pytest.raises(FlagRefused):
        check_remote(flags)


@pytest.mark.parametrize("value", ["--rpc", "-m", "--", "-"])
def test_nor_is_it_in_a_settings_file(value: str) -> None:
    spec = EngineSpec("m", Path("m.gguf"), flags={"jinja": value})
    with pytest.raises(FlagRefused, match="must not begin with '-'"):
        engine_argv(EngineBinary("llama-server", ("llama-server",), "b1"), spec, port=1)


@pytest.mark.parametrize("value", ["-1", "-0.5", "-1,2,-3", "-inf", "-1e-3", "1-2"])
def test_numbers_below_zero_are_values(value: str) -> None:
    spec = EngineSpec("m", Path("m.gguf"), flags={"keep": value})
    assert engine_argv(EngineBinary("llama-server", ("llama-server",), "b1"), spec, port=1)[-2:] == ["--keep", value]


def test_the_shapes_of_both_ends_agree() -> None:
    check_remote(Profile(flags={"flash-attn": "on", "jinja": True, "override-tensor": ["a=CPU"]}).flags)
