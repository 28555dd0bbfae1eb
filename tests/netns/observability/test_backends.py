"""airmesh as Jaeger and Prometheus see it: the real ones, fed by real services on a node in a namespace.

`make test-telemetry` runs this. It builds Jaeger of its Go modules the first time (some four minutes), and needs
Debian's package `prometheus`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from chassis.bus.client import Bus
from chassis.telemetry.traces import Telemetry
from lab import paths
from lab.images.build import build_all
from lab.images.observability import JAEGER
from proto.codec import object_key
from proto.objects import Owner, Pod
from proto.subjects import OBJECTS
from tests.natsd import free_port
from tests.netns.dataplane.mesh import REPOSITORY, TRY_AGAIN_LATER, Mesh, mesh, wait_for
from tests.shell.observability.test_rules import expressions

pytestmark = [pytest.mark.slow, pytest.mark.privileged]
FOLDER = REPOSITORY / "deploy" / "observability"
OTLP = "http://127.0.0.1:4318"
JAEGER_API = "http://127.0.0.1:16686/api"


@contextmanager
def running(log: Path, *argv: str) -> Iterator[None]:
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def get(url: str) -> Any:
    """The JSON at an address; None while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return {"refused": refused.read().decode()}
    except OSError:
        return None


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A node whose services send their spans to a Jaeger beside them."""
    jaeger = asyncio.run(build_all((JAEGER,), paths.settings().cache, print))[JAEGER.name]
    folder = tmp_path_factory.mktemp("backends")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", OTLP)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "500")
        world = stack.enter_context(mesh(folder, "ob"))
        stack.enter_context(running(folder / "jaeger.log", str(jaeger), "--config", f"file:{FOLDER / 'jaeger.yaml'}"))
        wait_for("Jaeger's API", lambda: get(f"{JAEGER_API}/services") is not None, 30)
        world.start("routing", "routing-n1", AIRMESH_NODE="n1", AIRMESH_UPLINKS="fab0")
        wait_for("what routing says first", lambda: any(line["event"] == "announced" for line in world.log("routing")))
        yield world


def start_pod(node: Mesh, name: str) -> str:
    """A pod that keeps its address starts; the trace that begins with its object, as `cluster` would write it."""
    owner = Owner("shop", "StatefulSet", name, 0)
    pod = Pod(namespace="shop", name=f"{name}-0", uid=f"uid-{name}", node="n1", labels=(("app", name),), owner=owner)
    telemetry = Telemetry("cluster", "a-test", os.environ)

    async def go(bus: Bus) -> str:
        with telemetry.span("cluster.upsert", k8s__object__name=pod.name) as span:
            await bus.bucket(OBJECTS).put(object_key(pod), pod)
            return span.trace_id

    trace_id = node.as_cluster(go)
    telemetry.stop()
    netns = node.empty_namespace()
    answer = node.cni("ADD", f"c-{name}", netns, pod)
    while answer.body.get("code") == TRY_AGAIN_LATER:
        answer = node.cni("ADD", f"c-{name}", netns, pod)
    assert answer.code == 0, answer
    return trace_id


def test_jaeger_shows_a_pods_start_through_all_services(node: Mesh) -> None:
    trace_id = start_pod(node, "seen")
    wanted = {"cluster", "policy", "dataplane", "ipam", "routing"}

    def services_of(found: Any) -> set[str]:
        return {one["serviceName"] for one in found["processes"].values()}

    def look() -> Any:
        answer = get(f"{JAEGER_API}/traces/{trace_id}") or {}
        whole = next(iter(answer.get("data") or []), None)
        return whole if whole and wanted <= services_of(whole) else None

    whole = wait_for(f"a trace {trace_id} of all services in Jaeger", look, 40)
    spans = {span["spanID"]: span for span in whole["spans"]}
    parents = {reference["spanID"] for span in whole["spans"] for reference in span["references"]}
    assert parents <= spans.keys(), "a parent is missing"
    heads = [span["operationName"] for span in whole["spans"] if not span["references"]]
    assert heads == ["cluster.upsert"], "one beginning"
    (add,) = [span for span in whole["spans"] if span["operationName"] == "cni-add"]
    tags = {tag["key"]: tag["value"] for tag in add["tags"]}
    assert (tags["k8s.pod.name"], tags["k8s.node.name"]) == ("seen-0", "n1")
    logged = [field["value"] for log in add["logs"] for field in log["fields"] if field["key"] == "event"]
    assert logged == ["admitted", "addressed", "linked", "up"]
    process = whole["processes"][add["processID"]]
    about = {tag["key"]: tag["value"] for tag in process["tags"]}
    assert about["service.namespace"] == "airmesh"
    found = get(f"{JAEGER_API}/operations?service=dataplane")["data"]
    assert any("cni-add" in str(operation) for operation in found)


def test_prometheus_scrapes_all_and_every_query_is_one(node: Mesh, tmp_path: Path) -> None:
    start_pod(node, "counted")
    services = ("ipam", "policy", "routing", "dataplane")
    ports = {
        service: next(line["health_port"] for line in reversed(node.log(service)) if line["event"] == "started")
        for service in services
    }
    targets = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"service": service, "node": "n1"}}
        for service, port in ports.items()
    ]
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["scrape_timeout"] = "1s"
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump(targets))
    (tmp_path / "rules.yaml").write_text((FOLDER / "rules.yaml").read_text())
    port = free_port()
    api = f"http://127.0.0.1:{port}/api/v1"
    argv = (
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'store'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )

    def query(text: str) -> Any:
        return get(f"{api}/query?{urllib.parse.urlencode({'query': text})}")

    with running(tmp_path / "prometheus.log", *argv):

        def all_up() -> bool:
            found = ((query("up") or {}).get("data") or {}).get("result", [])
            return sorted(one["metric"]["service"] for one in found if one["value"][1] == "1") == sorted(services)

        wait_for("every agent is scraped", all_up, 30)
        assert len(query("airmesh_ready")["data"]["result"]) == len(services)
        added = query('airmesh_cni_seconds_count{verb="ADD", code="0"}')["data"]["result"]
        assert [one["metric"]["node"] for one in added] == ["n1"]
        for text in expressions():
            answer = query(text.replace("$node", ".*"))
            assert answer["status"] == "success", (text, answer)

        def judged() -> bool:
            groups = get(f"{api}/rules")["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            assert all(rule["health"] != "err" for rule in rules), rules
            return all(rule["health"] == "ok" for rule in rules)

        wait_for("every rule is judged", judged, 30)
        firing = [
            one["labels"]["alertname"] for one in get(f"{api}/alerts")["data"]["alerts"] if one["state"] == "firing"
        ]
        assert firing == [], "nothing is wrong here"
        page = urllib.request.urlopen(f"http://127.0.0.1:{ports['dataplane']}/metrics", timeout=20).read()
    linted = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=20, check=False)
    ours = [line for line in (linted.stdout + linted.stderr).decode().splitlines() if line.startswith("airmesh_")]
    assert ours == []


@pytest.mark.parametrize(
    "argv",
    [("config", "--lint=all", "prometheus.yaml"), ("rules", "--lint=all", "rules.yaml")],
    ids=lambda argv: argv[0],
)
def test_promtool_takes(argv: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", "check", *argv], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_raised_when_they_should() -> None:
    argv = ["promtool", "test", "rules", "rules-test.yaml"]
    done = subprocess.run(argv, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_a_dashboard_is_one_for_promtool(tmp_path: Path) -> None:
    rules = [{"record": f"a:b{number}:c", "expr": text} for number, text in enumerate(expressions())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "boards", "rules": rules}]}))
    argv = ["promtool", "check", "rules", str(tmp_path / "rules.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
