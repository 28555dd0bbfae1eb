"""Alerts, dashboards and the manual name metrics that there are, by names that Prometheus' conventions allow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "observability"
MADE = re.compile(
    r"\b(Gauge|Counter|Histogram|GaugeMetricFamily|CounterMetricFamily|HistogramMetricFamily)\(\s*\"(airmesh_\w+)\",\s*\"([^\"]+)\""
)
NAMED = re.compile(r"(?<![\w:])airmesh_\w+")
UNITS = ("_seconds", "_bytes", "_ratio")
OF_TARGETS = {"job", "instance", "service", "node"}
"""Labels that a scrape adds (targets.yaml)."""
GRID = 24
"""Columns of a dashboard."""
BOARDS = sorted((FOLDER / "dashboards").glob("*.json"))


def metrics() -> dict[str, str]:
    """Every metric that the code makes, as its page names it, with its kind."""
    found = {}
    for folder in ("chassis", "services"):
        for path in (ROOT / folder).rglob("*.py"):
            for kind, name, _ in MADE.findall(path.read_text()):
                counter = kind.startswith("Counter")
                found[name + "_total" * (counter and not name.endswith("_total"))] = kind
    return found


def series() -> set[str]:
    """Names that a query may use."""
    names = set()
    for name, kind in metrics().items():
        names |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind.startswith("Histogram") else {name}
    return names


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            yield from (target["expr"] for target in panel["targets"])


def test_every_query_is_about_metrics_that_there_are() -> None:
    records = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for text in expressions() for name in NAMED.findall(text)}
    assert asked - series() == set()
    recorded = {name for text in expressions() for name in re.findall(r"\b\w+:airmesh\w*:\w+", text)}
    assert recorded <= records
    assert len(asked) > 20, "the pattern finds nothing"


def test_every_alert_says_what_is_wrong_and_where_to_look() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning", "info"), alert["alert"]
        assert alert["annotations"].keys() == {"summary", "description"}, alert["alert"]
        assert alert["alert"].startswith("Airmesh")


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_grafana_takes(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"].startswith("airmesh-")
    assert {"title", "panels", "templating", "schemaVersion"} <= board.keys()
    numbers = [panel["id"] for panel in board["panels"]]
    assert numbers == list(range(1, len(numbers) + 1))
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_panels_of_a_dashboard_have_places_variables_and_labels_that_there_are(path: Path) -> None:
    """Grafana is not run here: what it would not show, or show as an empty name, is looked for by its own model of a
    dashboard (https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/).
    """
    board, labels, taken = json.loads(path.read_text()), labels_of(), set[tuple[int, int]]()
    variables = {one["name"] for one in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) <= variables
    for variable in board["templating"]["list"]:
        for name, label in re.findall(r"label_values\((\w+), (\w+)\)", variable["query"]):
            assert label in labels[name] | OF_TARGETS
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= GRID, panel["title"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]
        for target in panel["targets"]:
            kept = re.search(r"\bby\s*\(([^)]*)\)", target["expr"])
            known = OF_TARGETS.union(*(labels[name] for name in labels if name in target["expr"]))
            asked = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert asked <= (set(re.findall(r"\w+", kept[1])) if kept else known), panel["title"]


def labels_of() -> dict[str, set[str]]:
    """Labels of each metric, by the name that the code gives it."""
    pattern = re.compile(r"\"(airmesh_\w+)\",\s*\"[^\"]+\",?(?:\s*(?:labels(?:names)?=)?[\[(]([^\])]*)[\])])?")
    found: dict[str, set[str]] = {}
    for folder in ("chassis", "services"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, labels in pattern.findall(path.read_text()):
                found.setdefault(name, set()).update(re.findall(r"\"(\w+)\"", labels))
    return found


def test_names_keep_to_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming: base units, `_total` for what only grows, no other unit."""
    for name, kind in metrics().items():
        assert re.fullmatch(r"airmesh_[a-z0-9]+(_[a-z0-9]+)*", name), name
        assert name.endswith("_total") == kind.startswith("Counter"), name
        assert not re.search(r"_(ms|milliseconds|us|microseconds|kib|mib|percent|count|sum|bucket)$", name), name
        if kind.startswith("Histogram"):
            assert name.endswith(UNITS), f"{name}: a histogram names its unit"


def test_the_manual_names_every_metric() -> None:
    named = set(re.findall(r"`(airmesh_\w+)", (ROOT / "docs" / "telemetry.md").read_text()))
    assert named == set(metrics())
