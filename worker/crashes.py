"""Why an engine ended, in words: from its exit code and, if it never got ready, from its last lines."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from schemas.node import ReasonCode

_ILLEGAL_INSTRUCTION: Final = (132, -signal.SIGILL)
_KILLED: Final = (137, -signal.SIGKILL)
_SHOWN_LINES: Final = 2
_SHOWN_CHARS: Final = 400
_STAMP: Final = re.compile(r"^[\d.:]+ [DIWE] +")
_ERROR: Final = re.compile(r"(?i)^[\d.:]+ E |error|fail|abort|assert|fatal|cannot|invalid")

_SIGNS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"libcuda\.so\.1",
        "this engine needs NVIDIA's driver (libcuda.so.1 is missing here): install the driver or use a CPU build",
    ),
    (
        r"GLIBC(?:XX)?_[\d.]+'? not found",
        "this engine was built for a newer system ({0}): take a build for this one",
    ),
    (
        r"error while loading shared libraries: ([\w.+-]+)",
        "a library of the engine is missing here ({1})",
    ),
    (
        r"(?i)out of memory|failed to allocate|unable to allocate|cudaMalloc failed|ErrorOutOfDeviceMemory"
        r"|bad_alloc|insufficient memory|vk::DeviceMemory",
        "out of memory: take a smaller context, fewer slots, fewer GPU layers or a smaller quantisation",
    ),
    (
        r"(?i)unknown (?:model )?architecture:? '?([\w.-]+)",
        "this engine is too old for the model (architecture {1}): update llama.cpp",
    ),
    (
        r"(?i)invalid magic|corrupted or incomplete|not within the file bounds|gguf_init_from\w+: |"
        r"unexpectedly reached end of file",
        "the model file is broken or no GGUF: fetch it again",
    ),
    (
        r"(?i)failed to open|No such file or directory|cannot open",
        "a file cannot be opened",
    ),
    (
        r"(?i)(?:error: )?(?:invalid|unknown) argument:? ?(--?[\w-]+)?",
        "the engine does not know a flag ({1}): mend the model's flags",
    ),
    (
        r"(?i)couldn't bind|Address already in use",
        "its port was taken by another program",
    ),
)


def port_was_taken(lines: Sequence[str]) -> bool:
    """Whether it only failed to get its port, so that another one will do."""
    return bool(re.search(_SIGNS[-1][0], "\n".join(lines)))


def diagnosis(lines: Sequence[str]) -> str | None:
    """What a person should know, if the lines show a sign that we know."""
    text = "\n".join(lines)
    for pattern, meaning in _SIGNS:
        if (hit := re.search(pattern, text)) is not None:
            found = [hit[0], *(group or "see its log" for group in hit.groups()), "see its log"]
            return meaning.format(*found)
    return None


def ending(code: int) -> str:
    """How a process ended: `exit code 1`, `signal SIGSEGV`; with what it means where that is sure."""
    if code in _ILLEGAL_INSTRUCTION:
        return "it was built for another CPU (illegal instruction): take a build for this one"
    number = -code if code < 0 else code - 128
    name = (
        signal.Signals(number).name
        if number in {each.value for each in signal.Signals} and (code < 0 or code > 128)
        else None
    )
    if code in _KILLED:
        return "killed by SIGKILL (signal 9), not by Puna"
    return f"signal {name}" if name else f"exit code {code}"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an engine ended, for people and for programs."""

    text: str
    code: ReasonCode


_NO_MEMORY: Final = "the system was out of memory and killed it: take a smaller context, fewer slots or a smaller model"


def failed_start(code: int, lines: Sequence[str], *, no_memory: bool = False) -> Cause:
    """Why it never got ready. It has seen no request, so its last lines may be shown. `no_memory`: the system says
    that it killed something of ours for lack of memory."""
    if no_memory:
        return Cause(f"did not start: {_NO_MEMORY}", "out-of-memory")
    known = diagnosis(lines)
    telling = list(dict.fromkeys(_STAMP.sub("", line) for line in lines if _ERROR.search(line)))
    shown = " | ".join((telling or list(lines[-1:]))[:_SHOWN_LINES])[:_SHOWN_CHARS]
    said = f"; it said: {shown}" if shown else "; it said nothing"
    text = f"did not start: {known + '; ' if known else ''}{ending(code)}{said}"
    if port_was_taken(lines):
        return Cause(text, "port-taken")
    return Cause(text, "out-of-memory" if _is_memory(known) else "failed-to-start")


def died(code: int, lines: Sequence[str], *, no_memory: bool = False) -> Cause:
    """Why a ready engine ended. Lines are not shown: from here on they could have come from a request."""
    if no_memory:
        return Cause(f"ended: {_NO_MEMORY}", "out-of-memory")
    known = diagnosis(lines)
    text = f"ended by itself: {ending(code)}{'; ' + known if known else ''}"
    if code in _KILLED:
        return Cause(f"ended: {ending(code)}", "killed")
    return Cause(text, "out-of-memory" if _is_memory(known) else "self-terminated")


def killed(code: int) -> bool:
    """Whether it may have been the system that killed it, for lack of memory."""
    return code in _KILLED


def _is_memory(known: str | None) -> bool:
    return known is not None and known.startswith("out of memory")
