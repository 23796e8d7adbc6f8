"""An engine without a llama-server: llama.cpp's own HTTP server out of the xllamacpp wheel, as a program.

    python -m worker.embedded --model FILE --port PORT --alias NAME …

takes llama-server's long flags, `LLAMA_API_KEY`, `LLAMA_ARG_…`, `--version` and `--list-devices`, so that both kinds of
engine are found, started, watched and stopped alike. HTTP answers 503 from the first moment until the model is loaded.

Two rules: the server object is never destroyed (its destructor may wait for half a minute), so this process ends by a
signal or by `_exit`; and signals keep their default action, which ends it within some 20 ms whatever it is doing.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

from worker.embedded_flags import TABLE, BadFlag, apply, default_threads
from worker.minder import TAG_VARIABLE, die_with_parent


def main(argv: list[str]) -> NoReturn:
    """Serve until a signal ends the process. Exit codes: 1 the engine failed, 2 wrong flags, 69 no xllamacpp here."""
    if TAG_VARIABLE in os.environ:
        die_with_parent(os.getppid())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    xllamacpp = _library()
    if "--version" in argv:
        _leave(0, f"version: {xllamacpp.__version__} (xllamacpp)")
    if "--list-devices" in argv:
        _leave(0, _devices(xllamacpp))
    if "--help" in argv:
        _leave(0, "flags: " + " ".join(f"--{name}" for row in TABLE for name in row.names))
    _serve(xllamacpp, argv)


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        _leave(69, f"xllamacpp cannot be used: {error}")
    return xllamacpp


def _serve(xllamacpp: Any, argv: list[str]) -> NoReturn:
    params = xllamacpp.CommonParams()
    params.cpuparams.n_threads = default_threads()
    try:
        apply(argv, os.environ, params)
    except (BadFlag, OSError) as error:
        _leave(2, f"error: {error}")
    try:
        server = xllamacpp.Server(params)
    except Exception as error:  # noqa: BLE001 - whatever C++ threw, the process ends and says so
        _leave(1, f"error: the engine failed: {error}")
    while server:
        signal.pause()
    _leave(0, "")


def _devices(xllamacpp: Any) -> str:
    gpus = (device for device in xllamacpp.get_device_info() if "GPU" in device["type"].name)
    lines = [
        f"  {gpu['name']}: {gpu['description']} ({gpu['memory_total'] >> 20} MiB, {gpu['memory_free'] >> 20} MiB free)"
        for gpu in gpus
    ]
    return "\n".join(["Available devices:", *lines])


def _leave(code: int, text: str) -> NoReturn:
    """Say `text` and end without running any destructor."""
    out = sys.stderr if code else sys.stdout
    out.write(text + "\n")
    out.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
