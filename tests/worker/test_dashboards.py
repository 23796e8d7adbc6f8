"""Every name in an alert or on a dashboard is one that a worker tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.node import Heartbeat
from worker.copymetrics import CopiesNow, CopyMetrics
from worker.gauges import Sights
from worker.metrics import Metrics, Present
from worker.store.budget import Room

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = re.compile(r"\b(?:model_agent|puna|process|python)_[a-z0-9_]+")
SUFFIXES = ("_bucket", "_count", "_sum")


class Idle:
    """A node on which nothing happens."""

    active = queued = 0
    records = ()
    room = Room(0, 1, 2, 0)
    models = ()


def told() -> set[str]:
    """Names of all series, as a scrape tells them."""
    metrics, idle = Metrics(), Idle()
    CopyMetrics(metrics.registry, "puna", metrics.model)
    metrics.add(CopiesNow(idle))
    metrics.add(Present(idle, lambda: 0, lambda: True))  # type: ignore[arg-type]
    beat = Heartbeat(node="n", boot_id="b", sequence=1, version="1", started_at=0, architecture="x", pid=1)
    metrics.add(Sights(lambda: beat))
    return set(re.findall(r"^# TYPE (\S+)", metrics.text().decode(), re.M))


def alerts() -> list[dict[str, Any]]:
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def board() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "models.json").read_text())


def unknown(expressions: list[str]) -> set[str]:
    names = {name for text in expressions for name in NAME.findall(re.sub(r"by \([^)]*\)", "", text))}
    known = told()
    return {name for name in names if not {name, *(name.removesuffix(each) for each in SUFFIXES)} & known}


def test_every_name_in_an_alert_is_told_by_a_worker() -> None:
    assert len(alerts()) > 8
    assert {"ModelDownloadFailure", "ModelAgentDown"} <= {rule["alert"] for rule in alerts()}
    assert unknown([rule["expr"] for rule in alerts()]) == set()
    assert unknown(["rate(model_agent_no_such_total[1m])"]) == {"model_agent_no_such_total"}


def test_every_alert_says_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert len(rule["annotations"]["summary"]) > 20
        assert len(rule["annotations"]["description"]) > 30


def test_every_name_on_the_dashboard_is_told_by_a_worker() -> None:
    panels = board()["panels"]
    assert len(panels) > 10
    assert unknown([target["expr"] for panel in panels for target in panel["targets"]]) == set()
    places = [panel["gridPos"] for panel in panels]
    assert len({(each["x"], each["y"]) for each in places}) == len(panels)
    assert all(each["x"] + each["w"] <= 24 for each in places)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_alerts_fire_when_they_should() -> None:
    folder = DEPLOY / "prometheus"
    for argv in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        ran = subprocess.run(["promtool", *argv], cwd=folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
