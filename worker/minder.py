"""Minds one engine: `python -I -S minder.py KEY=VALUE… -- PROGRAM ARGUMENT…`, with a listening unix socket as input.

A process of its own, so that an engine outlives a worker that died, and no longer than it may:

* It starts the engine in a process group of its own, keeps the last of its output, and reaps it. On Linux it also
  inherits whatever the engine started and left behind, in whatever group, and ends that with the engine.
* Who connects and names the engine's tag *holds* it: hears its output from the first byte that is still kept and its
  end, and sends it signals. One at a time; a second one is told `B` and sent away.
* When the holder's connection ends (it died, however it died), a clock runs. Nobody came when it is over: the engine
  is ended, and so is this process. A holder that is merely frozen keeps its connection.
* A small guard in the engine's group waits for the end of this process, also by SIGKILL, and then ends the group: it
  can be no stranger's, for the guard is itself in it. Linux kills the engine besides (PR_SET_PDEATHSIG).

Frames, both ways: one byte of kind, four of length (big endian), the payload. To the minder: `A` tag, `S` number of a
signal, `M` from here on the output may quote requests. From it: `H` pid of the engine, `B` somebody holds it, `1` and
`2` output, `M`, `L` bytes that were lost, `Z` both outputs have ended, `X` exit code, `G` all of it is gone.

Standard library only, and little of it: one of these runs beside each engine.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress

TAG_VARIABLE = "PUNA_ENGINE_TAG"
"""Environment variable with an engine's random tag: by it, what an engine started is known to be its."""
PROTOCOL = 1
"""Version of the frames; a worker holds no minder that speaks another one."""
CLAIM_S = 5.0
"""How long who connects, or the first worker, may take to claim."""
TERM_S = 2.0
"""From SIGTERM to SIGKILL for an engine that nobody came for."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What the minder ignores, and the engine must not."""
_FLUSH_S = 10.0
_SWEEP_S = 0.01
_FRAME_OVERHEAD_BYTES = 96
_WAITING_LIMIT = 8
_CLAIM_LIMIT_BYTES = 256
_READ_BYTES = 65536
_LAST_FD = 65536
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One message of the protocol above."""
    return kind + len(payload).to_bytes(4, "big") + payload


def _prctl(option: int, value: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send `number` when the parent ends (Linux); exit at once if it already has."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(1)


class Ring:
    """The last frames, at most `limit_bytes` of them. Each has a number; numbers only grow."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.frames: deque[bytes] = deque()
        self.first = 0
        self.bytes = 0
        self.lost_bytes = 0
        """Of frames that went out: all that was ever added before the first one here."""
        self.marked = False
        """The mark `M` has gone out of the ring: all that is left may quote requests."""

    def add(self, data: bytes) -> None:
        """One more frame; the oldest go."""
        self.frames.append(data)
        self.bytes += len(data) + _FRAME_OVERHEAD_BYTES
        while self.bytes > self.limit_bytes and len(self.frames) > 1:
            old = self.frames.popleft()
            self.first += 1
            self.bytes -= len(old) + _FRAME_OVERHEAD_BYTES
            self.lost_bytes += len(old) - 5
            self.marked = self.marked or old[:1] == b"M"

    @property
    def end(self) -> int:
        """The number of the next frame."""
        return self.first + len(self.frames)


class Holder:
    """The connection of who holds the engine. What it has not read yet stays in the ring alone."""

    def __init__(self, link: socket.socket, ring: Ring, hello: bytes) -> None:
        self.link = link
        self.unread = b""
        self._ring = ring
        self._out = hello
        self._next = ring.first
        self._passed_bytes = ring.lost_bytes
        if ring.marked:
            self._out += frame(b"M")

    @property
    def behind(self) -> bool:
        """Whether there is more to send."""
        return bool(self._out) or self._next < self._ring.end

    def send(self) -> None:
        """As much as the connection takes now. Raises `OSError` when it is gone."""
        while self.behind:
            self._out = self._out or self._take()
            try:
                sent = self.link.send(self._out)
            except BlockingIOError:
                return
            self._out = self._out[sent:]

    def _take(self) -> bytes:
        ring = self._ring
        if self._next < ring.first:
            lost, self._passed_bytes = ring.lost_bytes - self._passed_bytes, ring.lost_bytes
            self._next = ring.first
            return frame(b"L", b"%d" % lost) + (frame(b"M") if ring.marked else b"")
        several: list[bytes] = []
        size = 0
        while self._next < ring.end and size < _READ_BYTES:
            several.append(ring.frames[self._next - ring.first])
            size += len(several[-1])
            self._next += 1
        self._passed_bytes += size - 5 * len(several)
        return b"".join(several)


class Minder:
    """One engine, from its start until nothing of it is left."""

    def __init__(self, door: socket.socket, order: dict[str, str], argv: list[str]) -> None:
        self.door = door
        self.order = order
        self.argv = argv
        self.tag = os.environ.get(TAG_VARIABLE, "").encode()
        self.grace_s = float(order.get("grace_s", "0"))
        self.ring = Ring(int(order.get("ring_bytes", str(10 << 20))))
        self.holder: Holder | None = None
        self.claimed = False
        self.waiting: dict[int, tuple[socket.socket, float]] = {}
        self.engine = self.guard = 0
        self.code: int | None = None
        self.outputs: dict[int, bytes] = {}
        self.end_at: float | None = time.monotonic() + CLAIM_S
        self.kill_at: float | None = None
        self.gone_at: float | None = None
        self.poll = select.poll()

    # -- the start
    def start(self) -> None:
        """Fork the engine and its guard."""
        self.wake = os.pipe()
        for end in self.wake:
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda number, stack: None)
        signal.set_wakeup_fd(self.wake[1], warn_on_full_buffer=False)
        if sys.platform == "linux":
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        out, err, self.life = os.pipe(), os.pipe(), os.pipe()
        minder = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until the child may die of them: ignored ones would be lost
        self.engine = os.fork()
        if self.engine == 0:
            become_engine(minder, out[1], err[1], self.order, self.argv)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        with suppress(PermissionError, ProcessLookupError):  # it was quicker, and has its group already
            os.setpgid(self.engine, self.engine)
        self.guard = os.fork()
        if self.guard == 0:
            be_guard(self.engine, self.life)
        for end in (out[1], err[1], self.life[0]):
            os.close(end)
        self.outputs = {out[0]: b"1", err[0]: b"2"}
        for source in (*self.outputs, self.wake[0], self.door.fileno()):
            os.set_blocking(source, False)
            self.poll.register(source, select.POLLIN)
        os.chdir("/")

    # -- the loop
    def run(self) -> None:
        """Until all of it is gone and the holder knows."""
        while not self._over():
            for descriptor, _ in self.poll.poll(self._wait_ms()):
                self._readable(descriptor)
            self._clocks(time.monotonic())
            self._tell()

    def _over(self) -> bool:
        if self.gone_at is None:
            return False
        if self.holder is None:
            return self.claimed or time.monotonic() > self.gone_at + CLAIM_S
        return not self.holder.behind or time.monotonic() > self.gone_at + _FLUSH_S

    def _wait_ms(self) -> int:
        if self.code is not None and self.gone_at is None:
            return int(_SWEEP_S * 1000)
        times = [at for at in (self.end_at, self.kill_at, self.gone_at and self.gone_at + _FLUSH_S) if at]
        times += [at for _, at in self.waiting.values()]
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else -1

    def _readable(self, descriptor: int) -> None:
        if descriptor in self.outputs:
            self._output(descriptor)
        elif descriptor == self.wake[0]:
            os.read(descriptor, _READ_BYTES)
            self._reap()
        elif descriptor == self.door.fileno():
            self._visitor()
        elif descriptor in self.waiting:
            self._claim(descriptor)
        elif self.holder is not None and descriptor == self.holder.link.fileno():
            self._heard(self.holder)

    def _clocks(self, now: float) -> None:
        if self.code is not None and self.gone_at is None:
            self._sweep(now)
        if self.end_at is not None and now >= self.end_at:
            self.end_at, self.kill_at = None, now + (TERM_S if self.grace_s else 0)
            self._signal(signal.SIGTERM if self.grace_s else signal.SIGKILL)
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + 1.0
            self._signal(signal.SIGKILL)
        for link, until in list(self.waiting.values()):
            if now >= until:
                self._send_away(link)

    def _tell(self) -> None:
        if self.holder is None:
            return
        try:
            self.holder.send()
            behind = select.POLLOUT if self.holder.behind else 0
            self.poll.modify(self.holder.link, select.POLLIN | behind)
        except OSError:
            self._abandoned()

    # -- the engine
    def _output(self, descriptor: int) -> None:
        data = os.read(descriptor, _READ_BYTES)
        if data:
            self.ring.add(frame(self.outputs[descriptor], data))
            return
        self.poll.unregister(descriptor)
        os.close(descriptor)
        del self.outputs[descriptor]
        if not self.outputs:
            self.ring.add(frame(b"Z"))

    def _reap(self) -> None:
        """Collect who ended: the engine, its guard, and what the engine left behind."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.engine:
                self.code = os.waitstatus_to_exitcode(status)
                self.ring.add(frame(b"X", b"%d" % self.code))
            elif pid == self.guard:
                self.guard = 0

    def _sweep(self, now: float) -> None:
        """The engine has ended: end the rest. While the guard is unreaped its group cannot be anybody else's."""
        for child in children():
            kill(child, signal.SIGKILL) if child != self.guard else None
        if self.guard:
            kill(-self.engine, signal.SIGKILL)
        self._reap()
        if self.guard or children():
            return
        for descriptor in list(self.outputs):
            self._drain(descriptor)
        self.ring.add(frame(b"G"))
        self.gone_at, self.end_at, self.kill_at = now, None, None

    def _drain(self, descriptor: int) -> None:
        try:
            while descriptor in self.outputs:
                self._output(descriptor)
        except BlockingIOError:
            return

    def _signal(self, number: int) -> None:
        if self.code is None:
            kill(-self.engine, number)

    # -- who holds it
    def _visitor(self) -> None:
        try:
            link, _ = self.door.accept()
        except OSError:
            return
        link.setblocking(False)
        if len(self.waiting) >= _WAITING_LIMIT:
            link.close()
            return
        self.waiting[link.fileno()] = (link, time.monotonic() + CLAIM_S)
        self.poll.register(link, select.POLLIN)

    def _claim(self, descriptor: int) -> None:
        link, _ = self.waiting[descriptor]
        try:
            data = link.recv(_CLAIM_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data != frame(b"A", self.tag):
            self._send_away(link)
        elif self.holder is not None or self.kill_at or (self.claimed and self.code is not None):
            self._send_away(link, frame(b"B"))
        else:
            self.claimed = True
            del self.waiting[descriptor]
            self.end_at = None
            self.holder = Holder(link, self.ring, frame(b"H", b"%d %d" % (PROTOCOL, self.engine)))

    def _send_away(self, link: socket.socket, words: bytes = b"") -> None:
        self.poll.unregister(link)
        del self.waiting[link.fileno()]
        with suppress(OSError):  # it has gone by itself
            link.send(words)
        link.close()

    def _heard(self, holder: Holder) -> None:
        try:
            data = holder.link.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._abandoned()
            return
        holder.unread += data
        while len(holder.unread) >= 5:
            size = 5 + int.from_bytes(holder.unread[1:5], "big")
            if len(holder.unread) < size:
                return
            self._told(holder.unread[:1], holder.unread[5:size])
            holder.unread = holder.unread[size:]

    def _told(self, kind: bytes, payload: bytes) -> None:
        if kind == b"S":
            self._signal(int(payload))
        elif kind == b"M":
            self.ring.add(frame(b"M"))

    def _abandoned(self) -> None:
        """The holder is gone: from now on the clock runs."""
        if self.holder is not None:
            self.poll.unregister(self.holder.link)
            self.holder.link.close()
            self.holder = None
            self.end_at = time.monotonic() + self.grace_s


def kill(target: int, number: int) -> None:
    """Signal a child, or with a negative `target` a group of ours, if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(target, number)


def children() -> list[int]:
    """Whom this process must still reap, where the system tells (Linux)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as listed:  # noqa: PTH123 - pathlib is not small
            return [int(word) for word in listed.read().split()]
    except OSError:
        return []


def be_guard(group: int, life: tuple[int, int]) -> None:
    """Wait in the engine's group for the end of the minder, then end the group and this process with it."""
    try:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        os.setpgid(0, group)
        os.dup2(life[0], 0)
        os.closerange(3, _LAST_FD)
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(0)


def become_engine(minder: int, out: int, err: int, order: dict[str, str], argv: list[str]) -> None:
    """Does not return."""
    code = 127
    try:
        os.setpgid(0, 0)
        die_with_parent(minder)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        os.closerange(3, _LAST_FD)
        for number in (*ENDING, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        confine(order)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        os.execvp(argv[0], argv)  # noqa: S606 - replacing this process without a shell is the point
    except OSError as error:
        os.write(2, f"cannot run {argv[0]}: {error.strerror}\n".encode())
        code = 126 if isinstance(error, PermissionError) else 127
    finally:
        os._exit(code)


def confine(order: dict[str, str]) -> None:
    """Limits, before the program is there to feel them. What cannot be had is said in the engine's output."""
    for name, value in order.items():
        try:
            _limit(name, value)
        except (OSError, ValueError) as error:
            os.write(2, f"minder: cannot apply {name}={value}: {error}\n".encode())


def _limit(name: str, value: str) -> None:
    if name == "cgroup":
        with open(f"{value}/cgroup.procs", "w") as members:  # noqa: PTH123 - pathlib is not small
            members.write("0")
    elif name == "nice":
        os.nice(int(value))
    elif name == "scratch":
        os.chdir(value)
        os.environ["TMPDIR"] = value
    elif name.startswith("rlimit_"):
        import resource

        which = getattr(resource, name.upper())
        _, most = resource.getrlimit(which)
        limit = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
        resource.setrlimit(which, (limit, limit))


def main(words: list[str]) -> None:
    """`words`: the order as `key=value`, `--`, the engine's command line."""
    os.setsid()
    os.closerange(3, _LAST_FD)
    for number in (*ENDING, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    split = words.index("--")
    order = dict(word.split("=", 1) for word in words[:split])
    door = socket.socket(fileno=os.dup(0))
    path = door.getsockname()
    minder = Minder(door, order, words[split + 1 :])
    try:
        minder.start()
        minder.run()
    finally:
        with suppress(FileNotFoundError):  # the worker was quicker
            os.unlink(path)  # noqa: PTH108 - pathlib is not small


if __name__ == "__main__":
    main(sys.argv[1:])
