"""The command line, the environment and the log of an engine."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.crashes import Cause, died, ending, failed_start, port_was_taken
from worker.enginelog import EngineLog
from worker.enginespec import GIB, EngineBinary, EngineSettings, EngineSpec, FlagValue
from worker.flags import REFUSED, FlagRefused
from worker.launch import Command, Confinement, command, default_threads, engine_argv, engine_environment
from worker.loadtimes import LoadTimes, model_bytes
from worker.process import launch

BINARY = EngineBinary("llama-server", ("/opt/llama-server",), "9999")


def argv(**changes: object) -> list[str]:
    given: dict[str, object] = {"model": "org/m:Q4", "path": Path("/m.gguf"), "slots": 4} | changes
    return engine_argv(BINARY, EngineSpec(**given), 30001)  # type: ignore[arg-type]


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_an_engine_listens_on_the_loopback_under_its_alias_only() -> None:
    words = argv()
    assert words[0] == "/opt/llama-server"
    assert after(words, "--host") == "127.0.0.1"
    assert after(words, "--port") == "30001"
    assert after(words, "--alias") == "org/m:Q4"
    assert {"--metrics", "--slots", "--no-webui"} <= set(words)


def test_context_is_for_one_request_so_the_engine_gets_it_for_each_slot() -> None:
    assert after(argv(context_tokens=2048), "--ctx-size") == "8192"
    assert "--ctx-size" not in argv(context_tokens=None)


def test_one_core_is_left_free_unless_told_otherwise() -> None:
    assert after(argv(), "--threads") == str(default_threads())
    assert default_threads() == max(1, len(os.sched_getaffinity(0)) - 1)
    assert after(argv(threads=7), "--threads") == "7"
    assert argv(flags={"threads": "3"}).count("--threads") == 1


def test_a_gpu_engine_told_to_stay_on_the_cpu_does() -> None:
    gpu = EngineBinary("llama-server", ("x",), "", ("cuda:0",))
    spec = EngineSpec("m", Path("/m"))
    assert after(engine_argv(gpu, spec, 1), "--device") == "none"
    assert "--device" not in engine_argv(gpu, EngineSpec("m", Path("/m"), devices=("cuda:0",)), 1)
    assert "--device" not in engine_argv(BINARY, spec, 1)


def test_profile_flags_pass_through_untouched() -> None:
    flags: dict[str, FlagValue] = {"flash-attn": "on", "jinja": True, "--mmap": False, "lora": ["a", "b"], "top_k": "5"}
    words = argv(flags=flags)
    expected = ["--flash-attn", "on", "--jinja", "--no-mmap", "--lora", "a", "--lora", "b", "--top-k", "5"]
    assert words[-len(expected) :] == expected


@pytest.mark.parametrize("flag", sorted(REFUSED))
def test_flags_that_break_a_promise_are_refused_in_any_spelling(flag: str) -> None:
    for spelling in (flag, f"--{flag}", flag.replace("-", "_")):
        with pytest.raises(FlagRefused, match=r"may not be set: .+"):
            argv(flags={spelling: "1"})


@pytest.mark.parametrize("flag", ["-c", "c", "", "--", "a b", "port=1", "HOST", "x;y", "-ngl"])
def test_what_is_no_long_flag_is_refused(flag: str) -> None:
    with pytest.raises(FlagRefused, match="long name"):
        argv(flags={flag: "1"})


@pytest.mark.parametrize(("level", "fine"), [("3", True), ("0", True), ("4", False), ("x", False), ("-1", False)])
def test_the_engine_never_logs_at_a_level_that_holds_prompts(level: str, fine: bool) -> None:
    if fine:
        assert after(argv(flags={"log-verbosity": level}), "--log-verbosity") == level
    else:
        with pytest.raises(FlagRefused, match="at most 3"):
            argv(flags={"log-verbosity": level})


def test_the_workers_secrets_do_not_reach_the_engine_and_its_own_key_does() -> None:
    secret = ["NATS_URL", "PUNA_BUS__PASSWORD", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "LLAMA_API_KEY"]
    ours = ["LLAMA_ARG_PORT", "LLAMA_ARG_HOST", "LLAMA_LOG_FILE", "LLAMA_ARG_LOG_VERBOSITY", "LLAMA_ARG_N_PARALLEL"]
    fine = [
        "PATH",
        "HOME",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "LLAMA_ARG_FLASH_ATTN",
        "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    ]
    spec = EngineSpec("m", Path("/m"), environment={"HIP_VISIBLE_DEVICES": "1", "LLAMA_ARG_PORT": "1"})
    seen = engine_environment(dict.fromkeys(secret + ours + fine, "value"), spec, key="k", tag="t")
    assert set(seen) == {*fine, "HIP_VISIBLE_DEVICES", "LLAMA_API_KEY", "PUNA_ENGINE_TAG"}
    assert (seen["LLAMA_API_KEY"], seen["PUNA_ENGINE_TAG"]) == ("k", "t")


def test_each_start_has_a_key_of_its_own() -> None:
    spec = EngineSpec("m", Path("/m"))
    first, second = (command(BINARY, spec, 1, {}) for _ in range(2))
    assert first.key != second.key
    assert first.tag != second.tag
    assert first.key not in " ".join(first.argv)


def test_files_of_a_command_line_keep_their_meaning_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.gguf", "p.gguf"):
        (tmp_path / name).touch()
    spec = EngineSpec("m.gguf", Path("m.gguf"), flags={"mmproj": "p.gguf", "lora": "gone.gguf"})
    words = list(command(BINARY, spec, 1, {}, Confinement(scratch="/s")).argv)
    assert after(words, "--model") == str(tmp_path / "m.gguf")
    assert after(words, "--mmproj") == str(tmp_path / "p.gguf")
    assert after(words, "--lora") == "gone.gguf"
    assert after(words, "--alias") == "m.gguf"


async def test_the_last_line_counts_without_an_end_and_the_code_is_the_engines_own() -> None:
    log = EngineLog()
    argv = ("/bin/sh", "-c", "printf 'one\\ntwo'; exit 7")
    process = await launch(Command(argv, dict(os.environ), 1, "", ""), log)
    assert await process.exited == 7
    async with asyncio.timeout(5):
        await process.output_ended.wait()
    assert log.tail(9) == ["one", "two"]
    assert await process.gone() == 7


# -- the log


def log_after_ready(*lines: str) -> EngineLog:
    log = EngineLog()
    log.begin(secret="s3cr3t")
    log.requests_begin()
    log.feed(2, "".join(f"{line}\n" for line in lines).encode())
    return log


HARMLESS = [
    "0.02.390.747 I slot launch_slot_: id  1 | task 1 | processing task, is_child = 0",
    "0.02.646.933 I slot print_timing: id  1 | task 1 |        eval time =      44.54 ms /     5 tokens "
    "(    8.91 ms per token,   112.25 tokens per second)",
    "0.02.646.960 I slot      release: id  1 | task 1 | stop processing: n_tokens = 41, truncated = 0",
    "srv  update_slots: all slots are idle",
    "/src/ggml/src/ggml.c:123: GGML_ASSERT(ne0 == ne1) failed",
    "CUDA error: out of memory",
]
TELLING = [
    '0.02.655.145 W srv    operator(): got exception: {"error":{"message":"last read: \'\\"my secret prompt\'"}}',
    "my secret prompt",
    "ggml_x: my secret prompt",
    "llama_x: failed to my secret prompt",
    "slot x: id 1 | task 1 | next token: 'Secret'",
    "CUDA error: {my secret}",
]


@pytest.mark.parametrize("line", HARMLESS)
def test_lines_that_hold_numbers_alone_are_kept(line: str) -> None:
    assert log_after_ready(line).tail(9) == [line]


@pytest.mark.parametrize("line", TELLING)
def test_lines_that_could_hold_a_request_are_counted_and_dropped(line: str) -> None:
    log = log_after_ready(line)
    assert log.tail(9) == []
    assert log.withheld == 1


def test_before_the_first_request_all_is_kept_but_the_key() -> None:
    log = EngineLog()
    log.begin(secret="s3cr3t")
    log.feed(1, b"a\nkey s3cr3t\n" + b"x" * 9999 + b"\n\n")
    assert log.tail(9) == ["a", "key ***", "x" * 500]


def test_the_log_holds_so_many_bytes_and_the_newest_lines() -> None:
    log = EngineLog(10_000)
    log.begin(secret="")
    log.feed(1, b"".join(b"line %d\n" % number for number in range(5000)))
    kept = log.tail(5000)
    assert kept[-1] == "line 4999"
    assert 50 < len(kept) < 200


def test_followers_hear_batches_of_what_is_kept_until_they_close() -> None:
    log = EngineLog()
    log.begin(secret="key")
    heard: list[list[str]] = []
    following = log.follow(lambda lines: heard.append(list(lines)))
    log.feed(1, b"one\ntw")
    log.feed(1, b"o key\n" + b"x\n" * 600)
    assert heard[0] == ["one"]
    assert heard[1][0] == "two ***"
    assert max(len(batch) for batch in heard) <= 256
    assert sum(len(batch) for batch in heard) == 602
    log.requests_begin()
    log.feed(1, b"my secret prompt\n")
    following.close()
    following.close()
    log.feed(1, b"srv  update_slots: all slots are idle\n")
    assert sum(len(batch) for batch in heard) == 602


def test_a_follower_that_fails_hears_no_more_and_harms_nobody() -> None:
    log = EngineLog()
    heard: list[str] = []
    log.follow(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    log.follow(heard.extend)
    log.feed(1, b"a\n")
    log.feed(1, b"b\n")
    assert heard == ["a", "b"] == log.tail(2)


def test_streams_do_not_mix_and_lives_are_told_apart() -> None:
    log = EngineLog()
    log.begin(secret="")
    log.feed(1, b"from ")
    log.feed(2, b"to two\n")
    log.feed(1, b"one\n")
    assert log.tail(9) == ["to two", "from one"]
    log.begin(secret="")
    log.feed(1, b"new\n")
    assert log.life(9) == ["new"]


@given(st.lists(st.binary(max_size=40)))
def test_output_may_be_cut_anywhere(parts: list[bytes]) -> None:
    whole, cut = EngineLog(), EngineLog()
    whole.feed(1, b"".join(parts) + b"\n")
    for part in [*parts, b"\n"]:
        cut.feed(1, part)
    assert whole.tail(1000) == cut.tail(1000)


# -- crashes in words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x: error while loading shared libraries: libcuda.so.1: cannot open shared object file", "NVIDIA's driver"),
        ("/lib/libc.so.6: version `GLIBC_2.38' not found (required by x)", "newer system .GLIBC_2.38"),
        ("x: error while loading shared libraries: libgomp.so.1: cannot open", "libgomp.so.1"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "smaller context"),
        ("gguf_init_from_reader: invalid magic characters: 'root', expected 'GGUF'", "fetch it again"),
        ("llama_model_load: error loading model: unknown model architecture: 'new3'", "architecture new3.*update"),
        ("error: invalid argument: --flux", "--flux.*model's flags"),
        ("E srv init: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1", "port was taken"),
    ],
)
def test_a_failed_start_is_explained(line: str, words: str) -> None:
    assert re.search(words, failed_start(1, ["loading", line]).text)
    assert port_was_taken([line]) == ("bind" in line)


def test_endings_are_named() -> None:
    assert "another CPU" in ending(132)
    assert "another CPU" in ending(-4)
    assert ending(-11) == "signal SIGSEGV"
    assert ending(139) == "signal SIGSEGV"
    assert ending(-250) == "exit code -250"
    assert ending(3) == "exit code 3"
    assert died(-6, ["CUDA error: out of memory"]).text.endswith("smaller quantisation")


def test_causes_are_told_to_programs_too() -> None:
    assert died(-6, []).code == "self-terminated"
    assert died(-9, []) == Cause("ended: killed by SIGKILL (signal 9), not by Puna", "killed")
    assert died(137, [], no_memory=True).code == "out-of-memory"
    assert died(1, ["CUDA error: out of memory"]).code == "out-of-memory"
    assert failed_start(1, ["nothing telling"]).code == "failed-to-start"
    assert failed_start(-9, [], no_memory=True).code == "out-of-memory"
    assert failed_start(1, ["E srv init: couldn't bind HTTP server socket"]).code == "port-taken"


def test_the_default_time_out_grows_with_the_file_and_a_given_one_stands() -> None:
    assert EngineSettings().startup_limit_s(10 * GIB) == 530
    assert EngineSettings(startup_timeout_s=30).startup_limit_s(10 * GIB) == 30
    assert EngineSettings.model_validate({"llama_server_startup_timeout_s": 45}).startup_limit_s(GIB) == 45


def test_all_shards_of_a_split_model_count(tmp_path: Path) -> None:
    for shard in (1, 2, 3):
        (tmp_path / f"m[1]-0000{shard}-of-00003.gguf").write_bytes(b"x" * shard)
    assert model_bytes(tmp_path / "m[1]-00001-of-00003.gguf") == 6


def test_load_times_are_remembered_over_restarts(tmp_path: Path) -> None:
    LoadTimes(tmp_path / "loads").remember(Path("/m"), 12.5)
    assert LoadTimes(tmp_path / "loads").last_s(Path("/m")) == 12.5
    assert LoadTimes(tmp_path / "loads").last_s(Path("/other")) is None
