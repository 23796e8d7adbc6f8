"""Models from the command line to a disk and away again: a real nats-server, worker, gateway and file server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.app import run

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
PATIENCE_S = 30.0
SLOW = {"kind": "throttle", "bytes_per_s": 100_000}


@dataclass
class House:
    """Everything that runs, and where it is."""

    folder: Path
    nats: str
    files: str
    gateway: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> dict[str, Any]:
        """One process; what its first line says."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = process = subprocess.Popen(
                [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=self.environ
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (self.folder / f"{name}.log").read_text()[-2000:]
        return json.loads(line)

    def start_worker(self) -> None:
        state = ("--state-dir", str(self.folder / "state"), "--http", "127.0.0.1:0", "--config", str(self._settings()))
        self.start("worker", "-m", "worker", "--nats", self.nats, "--node", "one", *state)

    def _settings(self) -> Path:
        path = self.folder / "worker.yaml"
        told = {"engine": {"path": str(ENGINE), "orphan_grace_s": 0}, "downloads": {}}
        told["downloads"] = {"retry_interval_s": 0.05, "startup_stagger_max_s": 0}
        path.write_text(json.dumps(told))
        return path

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def model(self, name: str, size: int = 20_000) -> str:
        """A model file on the server that differs by its name; its URL."""
        sys.path.insert(0, str(ROOT / "tests" / "fakes"))
        import gguf

        pairs = {"general.name": name, "general.description": "x" * size}
        gguf.write(self.folder / "files" / f"{name}.gguf", pairs)
        return f"{self.files}/{name}.gguf"

    @contextmanager
    def fault(self, **fault: Any) -> Iterator[None]:
        """The file server is like this meanwhile."""
        self._tell("faults", [fault])
        try:
            yield
        finally:
            self._tell("reset", {})

    def _tell(self, page: str, body: Any) -> None:
        urllib.request.urlopen(f"{self.files}/-/{page}", json.dumps(body).encode()).read()

    def chat(self, model: str) -> tuple[int, dict[str, Any]]:
        """Status and body of one request."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
        request = urllib.request.Request(
            f"{self.gateway}/v1/chat/completions", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def kept(self, name: str) -> list[Path]:
        """Files on the node's disk that hold something of a model."""
        marker = name.encode()
        files = [path for path in (self.folder / "state").rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in files if marker in path.read_bytes()[:4096] and path.suffix != ".log"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, fake: Callable[[str], Any]) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    (folder / "files").mkdir()
    server = fake("natsd").NatsServer(folder / "nats")
    server.start()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_", "XDG_"))}
    one = House(folder, server.url, "", environ=kept | {"PYTHONPATH": str(ROOT), "HOME": str(folder)})
    try:
        one.files = one.start("files", "tests/fakes/fileserver.py", "--root", str(folder / "files"))["files"]
        one.start_worker()
        one.gateway = one.start("gateway", "-m", "gateway", "--nats", server.url, "--listen", "127.0.0.1:0")["url"]
        yield one
    finally:
        for process in one.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in one.processes.values():
            process.wait(PATIENCE_S)
        server.kill()


Told = tuple[int, str, str]


@pytest.fixture
def puna(house: House, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """The command, in this process: code, stdout, stderr."""
    monkeypatch.setenv("NATS_URL", house.nats)
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: str) -> Told:
        capfd.readouterr()
        code = run(arguments)
        return code, *capfd.readouterr()

    return call


def until(true: Callable[[], Any]) -> Any:
    """The first true answer."""
    ends_at = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < ends_at, "it is not so in time"
        time.sleep(0.05)
    return found


def rows(puna: Callable[..., Told], *command: str) -> list[dict[str, Any]]:
    code, out, err = puna(*command, "-o", "json")
    assert code == 0, err
    return json.loads(out)


def task_of(puna: Callable[..., Told], model: str) -> dict[str, Any]:
    return next((one for one in rows(puna, "tasks") if one["model"] == model), {})


def test_a_model_is_pulled_and_served_from_the_moment_that_its_task_is_done(house: House, puna) -> None:
    code, out, err = puna("pull", house.model("first"), "-o", "json")
    status, answer = house.chat("first")  # at once: no heartbeat needs to have told of it
    assert (code, status) == (0, 200), (err, answer)
    told = json.loads(out)
    assert (told["model"], told["state"], told["node"]) == ("first", "done", "one")
    assert "first is on its way" not in err
    [listed] = [one for one in rows(puna, "ls") if one["model"] == "first"]
    assert listed["copies"]["ready"] == 1
    shown = puna("show", "first")[1]
    assert "llama" in shown and "F32" in shown and "Ready" in shown and "4096 tokens" in shown
    again = json.loads(puna("pull", house.model("first"), "-o", "json")[1])
    assert again["state"] == "done"


def test_a_source_that_does_not_exist_is_said_kept_as_a_letter_and_tried_again(house: House, puna) -> None:
    source = f"{house.files}/second.gguf"
    code, _, err = puna("pull", source)
    assert code == 1
    assert "there is no such file" in err and "puna dlq redrive" in err
    [letter] = [one for one in rows(puna, "dlq", "ls") if one["body"]["model"] == "second"]
    assert "there is no such file" in puna("ls")[1]
    house.model("second")
    assert puna("dlq", "redrive", str(letter["letter"]))[0] == 0
    until(lambda: task_of(puna, "second")["state"] == "done")
    assert letter["letter"] not in [one["letter"] for one in rows(puna, "dlq", "ls")]
    assert puna("dlq", "redrive", str(letter["letter"]))[0] == 3


def test_a_download_is_seen_by_all_and_a_delete_in_the_middle_leaves_nothing(house: House, puna) -> None:
    source = house.model("third", 2_000_000)
    with house.fault(**SLOW):
        task = json.loads(puna("pull", source, "--detach", "-o", "json")[1])["task"]
        until(lambda: any("third" in line and "MB" in line for line in puna("ps")[1].splitlines()))
        assert "%" in puna("ps")[1]
        status, body = house.chat("third")
        assert (status, body["error"]["code"], body["loading"]["state"]) == (503, "model_loading", "downloading")
        assert puna("rm", "third")[0] == 2  # nobody can be asked here
        assert puna("rm", "third", "-y")[0] == 0
    ended = next(one for one in rows(puna, "tasks") if one["task"] == task)
    assert (ended["state"], "deleted" in ended["reason"]) == ("cancelled", True)
    assert house.kept("third") == []
    until(lambda: house.chat("third")[0] == 404)
    assert puna("rm", "third", "-y")[0] == 3


def test_a_task_is_cancelled_by_the_beginning_of_its_id(house: House, puna) -> None:
    source = house.model("fourth", 2_000_000)
    with house.fault(**SLOW):
        task = json.loads(puna("pull", source, "--detach", "-o", "json")[1])["task"]
        until(lambda: task_of(puna, "fourth").get("state") == "running")
        code, out, err = puna("cancel", task[:12])
        assert (code, "cancelled" in out) == (0, True), err
    assert puna("cancel", "t-never")[0] == 3


def test_a_field_with_a_typo_is_named_with_the_right_one_and_mended_by_redrive(house: House, puna, nats_put) -> None:
    source = house.model("fifth")
    nats_put("puna.task.download", {"model": "fifth", "sorce": source})
    [letter] = until(lambda: [one for one in rows(puna, "dlq", "ls") if one["body"]["model"] == "fifth"])
    assert "did you mean 'source'" in letter["error"]
    number = str(letter["letter"])
    code, _, err = puna("dlq", "redrive", number)
    assert (code, "--set sorce=" in err) == (2, True)
    assert puna("dlq", "redrive", number, "--set", "sorce=", "--set", f"source={source}")[0] == 0
    until(lambda: task_of(puna, "fifth").get("state") == "done")


def test_a_task_that_nobody_can_take_says_why(house: House, puna) -> None:
    moon = ("--label", "zone=moon", "--detach")
    puna("pull", house.model("sixth"), *moon)
    waiting = until(lambda: task_of(puna, "sixth"))
    until(lambda: "labels do not match" in str(task_of(puna, "sixth").get("reason")))
    assert waiting["op"] == "download"
    assert puna("pull", house.model("sixth"), "--node", "nowhere")[0] == 3
    puna("pull", house.model("sixth"), "--node", "nowhere", "--detach")
    named = next(one for one in rows(puna, "tasks") if one["node"] == "nowhere")
    assert (named["state"], "is not connected" in named["reason"]) == ("waiting", True)
    assert puna("cancel", named["task"])[0] == 0


def test_what_is_wanted_is_applied_served_changed_and_deleted(house: House, puna, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"model: seventh\nsource: {house.model('seventh')}\n---\nmodel: eighth\nsource: hf://a/b\n"
                    "placement: {copies: 1, selector: {labels: {zone: moon}}}\n")  # fmt: skip
    applied = json.loads(puna("model", "apply", "-f", str(spec), "-o", "json")[1])
    assert [one["result"] for one in applied] == ["created", "created"]
    again = json.loads(puna("model", "apply", "-f", str(spec), "-o", "json")[1])
    assert [one["result"] for one in again] == ["unchanged", "unchanged"]
    until(lambda: any(one["model"] == "seventh" and one["copies"]["ready"] == 1 for one in rows(puna, "ls")))
    assert house.chat("seventh")[0] == 200
    status, body = house.chat("eighth")
    assert (status, "selector takes none" in body["error"]["message"]) == (503, True)
    got = puna("model", "get", "eighth")[1]
    spec.write_text(got.replace("copies: 1", "copies: 2").replace("moon", "mars"))
    [changed] = json.loads(puna("model", "apply", "-f", str(spec), "-o", "json")[1])
    assert (changed["result"], changed["record"]["generation"]) == ("changed", 2)
    assert puna("model", "delete", "seventh", "eighth")[0] == 0
    until(lambda: not any(one["model"] in ("seventh", "eighth") for one in rows(puna, "ls")))
    assert puna("model", "delete", "never")[0] == 3


def test_a_download_goes_on_after_its_worker_was_killed(house: House, puna) -> None:
    source = house.model("ninth", 4_000_000)
    with house.fault(**(SLOW | {"bytes_per_s": 400_000})):
        puna("pull", source, "--detach")
        until(lambda: (task_of(puna, "ninth").get("progress") or {}).get("bytes_done", 0) > 500_000)
        house.kill("worker")
        house.start_worker()
    code, out, err = puna("pull", source, "--node", "one", "-o", "json")  # the first task comes again after 30 s
    assert (code, json.loads(out)["state"]) == (0, "done"), err
    assert house.chat("ninth")[0] == 200


@pytest.fixture
def nats_put(house: House) -> Callable[[str, dict[str, Any]], None]:
    """Publish as a plain client does, and wait until it is stored."""
    import asyncio

    import nats

    async def put(subject: str, body: dict[str, Any]) -> None:
        nc = await nats.connect(house.nats)
        await nc.jetstream().publish(subject, json.dumps(body).encode())
        await nc.close()

    return lambda subject, body: asyncio.run(put(subject, body))
