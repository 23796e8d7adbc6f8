"""Which of llama-server's flags a model's profile may hold, and how they are written.

Flags go to the engine untouched, but for those that would break what Puna promises: who may reach the engine, under
which name and port, and that no prompt is written down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, cast

from schemas.errors import InvalidRequest
from worker.enginespec import FlagValue

LOG_LEVEL_LIMIT: Final = 3
"""llama-server's "info". From 4 on it writes prompts."""

_OURS = "Puna sets it itself"
_PRIVATE = "it writes prompts down"
_OPEN = "it opens the engine to others or gives it powers beyond its model"
REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("host", "port", "reuse-port", "alias", "model", "api-prefix", "server-base"), _OURS),
    **dict.fromkeys(("api-key", "api-key-file", "metrics", "slots", "no-slots", "timeout"), _OURS),
    **dict.fromkeys(
        ("models-dir", "models-preset", "models-max", "model-url", "hf-repo", "hf-file", "hf-token"), _OURS
    ),
    **dict.fromkeys(("docker-repo", "offline", "version", "list-devices", "help", "completion-bash"), _OURS),
    "ctx-size": "set the model's context_tokens (for one request) instead",
    "parallel": "set the model's slots instead",
    **dict.fromkeys(("ssl-key-file", "ssl-cert-file"), "engines are reached on the loopback only, without TLS"),
    **dict.fromkeys(("log-file", "log-prompts-dir", "verbose", "log-verbose", "verbose-prompt"), _PRIVATE),
    "log-disable": "a crash could not be explained",
    **dict.fromkeys(
        ("path", "props", "tools", "tools-runtime", "agent", "mcp-servers-config", "mcp-servers-json"), _OPEN
    ),
    **dict.fromkeys(("ui-mcp-proxy", "webui-mcp-proxy", "rpc", "media-path"), _OPEN),
}
REFUSED_VARIABLES: Final = {f"LLAMA_ARG_{name.upper().replace('-', '_')}" for name in REFUSED} | {
    "LLAMA_ARG_ENDPOINT_METRICS",
    "LLAMA_ARG_ENDPOINT_PROPS",
    "LLAMA_ARG_ENDPOINT_SLOTS",
    "LLAMA_ARG_NO_ENDPOINT_SLOTS",
    "LLAMA_ARG_LOG_VERBOSITY",
    "LLAMA_ARG_MMPROJ_URL",
    "LLAMA_ARG_N_PARALLEL",
    "LLAMA_ARG_STATIC_PATH",
    "LLAMA_LOG_FILE",
    "LLAMA_LOG_VERBOSITY",
}
_NUMBER = re.compile(r"-[0-9.][0-9.,e+-]*|-inf")
_LEVEL_FLAGS = {"log-verbosity", "verbosity"}
_FLAG = re.compile(r"[a-z0-9][a-z0-9.-]+")


class FlagRefused(InvalidRequest):
    """A profile holds an engine flag that may not be set; the message says why and what to do."""

    code = "engine_flag_refused"


def profile_arguments(flags: Mapping[str, FlagValue]) -> Iterator[str]:
    """The words of a command line. Raises `FlagRefused`."""
    for given, value in flags.items():
        name = flag_name(given)
        check_flag(name, value)
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
            continue
        for one in value if isinstance(value, list) else [value]:
            yield f"--{name}"
            yield str(one)


def flag_name(given: str) -> str:
    """As llama-server writes it, without dashes before it. Raises `FlagRefused` for what is no long name."""
    name = given.removeprefix("--").replace("_", "-")
    if not _FLAG.fullmatch(name):
        raise FlagRefused(
            f"engine flag {given[:60]!r}: write llama-server's long name, such as 'ctx-size'", param="flags"
        )
    return name


def check_flag(name: str, value: FlagValue) -> None:
    """Raises `FlagRefused` for one that nobody may set."""
    if (why := REFUSED.get(name)) is not None:
        raise FlagRefused(f"engine flag --{name} may not be set: {why}", param="flags")
    if name in _LEVEL_FLAGS and not (str(value).isdigit() and int(cast(str, value)) <= LOG_LEVEL_LIMIT):
        raise FlagRefused(f"engine flag --{name}: at most {LOG_LEVEL_LIMIT}; above, {_PRIVATE}", param="flags")
    for one in value if isinstance(value, list) else [value]:
        # behind a switch, which takes no value, it would be a flag of its own
        if str(one).startswith("-") and not _NUMBER.fullmatch(str(one)):
            text = f"engine flag --{name}: its value must not begin with '-', unless it is a number"
            raise FlagRefused(text, param="flags")
