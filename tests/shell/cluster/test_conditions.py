"""What standing checks find stands on objects of a real API server while it lasts, by what `cluster` may do there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import yaml

from chassis.bus.client import Bus
from proto.events import FindingEvent
from proto.findings import Expected, Finding
from proto.subjects import FINDING, event_subject
from services.cluster.app import build
from services.cluster.core import conditions as core
from services.cluster.settings import Settings
from tests.conftest import BusFor, RuntimeFor
from tests.kubeapi import KubeApi
from tests.natsd import Lines, NatsServer, runtime_of
from tests.shell.chassis.runtime.test_standing import Sick

ROLES = Path(__file__).parents[3] / "deploy" / "kubernetes" / "rbac.yaml"
ROOM = "conditions"
SERVICE = f"/api/v1/namespaces/{ROOM}/services/web"
POD = f"/api/v1/namespaces/{ROOM}/pods/db"
NODE = "/api/v1/nodes/n1"
FOUND = Finding(
    code="nodeport-ephemeral",
    fault="nodeport",
    about=f"Service {ROOM}/web",
    cause="the port is given away",
    expected=Expected(text="this"),
    observed=(),
    fixes=(),
)
THROTTLED = msgspec.structs.replace(FOUND, code="service-throttled", about=f"Pod {ROOM}/db")
ROUTE = msgspec.structs.replace(FOUND, code="route-missing", about="Pair n1 n2")


@pytest.fixture(scope="module")
def api(kube_api: KubeApi) -> Iterator[KubeApi]:
    """With the objects, and an account that may do what the manifests grant `cluster`."""
    account = {"kind": "ServiceAccount", "name": "cluster", "namespace": ROOM}
    kube_api.call("POST", "/api/v1/namespaces", {"metadata": {"name": ROOM}})
    for name in ("cluster", "default"):
        kube_api.call("POST", f"/api/v1/namespaces/{ROOM}/serviceaccounts", {"metadata": {"name": name}})
    made = []
    for one in yaml.safe_load_all(ROLES.read_text()):
        if one["kind"] == "ServiceAccount":
            continue
        one["metadata"]["name"] += ":conditions"
        if "roleRef" in one:
            one["roleRef"]["name"] += ":conditions"
            one["subjects"] = [account]
        room = one["metadata"].get("namespace")
        path = f"/apis/rbac.authorization.k8s.io/v1{f'/namespaces/{room}' if room else ''}/{one['kind'].lower()}s"
        kube_api.call("POST", path, one)
        made.append(f"{path}/{one['metadata']['name']}")
    container = {"name": "c", "image": "x"}
    spec = {"nodeName": "n1", "containers": [container]}
    for path, kind, body in (
        (NODE, "Node", {}),
        (SERVICE, "Service", {"spec": {"ports": [{"port": 80}]}}),
        (POD, "Pod", {"spec": spec}),
    ):
        whole = {"apiVersion": "v1", "kind": kind, "metadata": {"name": path.rpartition("/")[2]}, **body}
        kube_api.call("PATCH", f"{path}?fieldManager=test", whole, "application/apply-patch+yaml")
        made.append(path)
    yield kube_api
    for path in reversed(made):
        kube_api.call("DELETE", path, {"gracePeriodSeconds": 0})


@asynccontextmanager
async def cluster(server: NatsServer, api: KubeApi) -> AsyncIterator[None]:
    """The whole service, with the rights of its manifests, ready."""
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    token = api.call("POST", f"/api/v1/namespaces/{ROOM}/serviceaccounts/cluster/token", wanted)["status"]["token"]
    settings = Settings(
        nats_url=server.url,
        nats_seed_file=server.seeds / "cluster.seed",
        nats_user="cluster",
        instance="one",
        kubeconfig=api.kubeconfig("cluster", token=token),
        lease_seconds=2,
    )
    async with runtime_of(server, "cluster", settings=settings, lines=Lines()) as runtime:
        await build(runtime)
        await until(lambda: runtime.health.ready, 60)
        yield


@pytest.fixture
def shown(api: KubeApi) -> Iterator[Callable[[str], dict[str, dict[str, Any]]]]:
    """Our conditions of an object, by the part of their type that is ours; taken away in the end."""

    def ask(path: str) -> dict[str, dict[str, Any]]:
        listed = api.call("GET", path).get("status", {}).get("conditions", ())
        return {one["type"].removeprefix(core.PREFIX): one for one in listed if one["type"].startswith(core.PREFIX)}

    yield ask
    for path, kind in ((SERVICE, "Service"), (POD, "Pod"), (NODE, "Node")):
        own = {"name": path.rpartition("/")[2], **({"namespace": ROOM} if ROOM in path.split("/") else {})}
        apply(api, path, "airmesh-conditions", {"apiVersion": "v1", "kind": kind, "metadata": own})


def apply(api: KubeApi, path: str, manager: str, body: Any) -> None:
    query = f"fieldManager={manager}&force=true"
    api.call("PATCH", f"{path}/status?{query}", body, "application/apply-patch+yaml")


async def until(condition: Callable[[], object], seconds: float) -> None:
    """Asks the API server four times a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.25)


def say(bus: Bus, service: str, finding: Finding, state: Literal["came", "lasts", "gone"] = "came") -> None:
    bus.publish(event_subject(service, FINDING), FindingEvent(service, "a lie", state, 1, finding, "one"))


async def test_it_comes_and_goes_with_what_is_found(
    nats_server: NatsServer,
    api: KubeApi,
    shown: Callable[[str], dict[str, dict[str, Any]]],
    bus_for: BusFor,
    runtime_for: RuntimeFor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apply(
        api,
        SERVICE,
        "somebody",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": ROOM},
            "status": {
                "conditions": [
                    {
                        "type": "example.org/Fine",
                        "status": "True",
                        "reason": "R",
                        "message": "m",
                        "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }
                ]
            },
        },
    )
    async with cluster(nats_server, api):
        agent = await runtime_for("dataplane", "n1")
        sick = Sick(FOUND, THROTTLED, ROUTE)
        agent.checks.add((FOUND.code, THROTTLED.code, ROUTE.code), sick)
        policy, other = await bus_for("policy"), await bus_for("dataplane", "n2")
        monkeypatch.setattr(core, "EVERY", 2.0)
        for _ in range(2):
            await agent.standing.look()
        say(policy, "policy", FOUND)
        say(other, "dataplane", THROTTLED)
        say(other, "dataplane", msgspec.structs.replace(ROUTE, about="Node n1", code="another"))
        await until(lambda: shown(SERVICE) and shown(POD) and shown(NODE), 40)
        (one,) = shown(SERVICE).values()
        assert (one["type"], one["status"], one["reason"]) == (
            "airmesh.io/NodeportEphemeral",
            "True",
            "NodeportEphemeral",
        )
        assert one["message"].startswith("the port is given away; airmesh doctor shows the evidence (says ")
        (one,) = shown(POD).values()
        assert one["message"].endswith("(says dataplane on n1)"), "n2 is not heard of another's pod"
        assert one["observedGeneration"] == 1
        assert shown(NODE).keys() == {"RouteMissing"}
        sick.found = (ROUTE,)
        for _ in range(2):
            await agent.standing.look()
        say(policy, "policy", FOUND, "gone")
        await until(lambda: not shown(SERVICE) and not shown(POD), 90)
        assert shown(NODE).keys() == {"RouteMissing"}
        others = api.call("GET", SERVICE)["status"]["conditions"]
        assert [one["type"] for one in others] == ["example.org/Fine"]


async def test_what_a_former_life_wrote_goes_when_nobody_reports_it(
    nats_server: NatsServer,
    api: KubeApi,
    shown: Callable[[str], dict[str, dict[str, Any]]],
    bus_for: BusFor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = await bus_for("dataplane", "n1")
    async with cluster(nats_server, api):
        say(agent, "dataplane", FOUND)
        say(agent, "dataplane", THROTTLED)
        await until(lambda: shown(SERVICE) and shown(POD), 40)
    before = shown(POD)["ServiceThrottled"]["lastTransitionTime"]
    monkeypatch.setattr(core, "SETTLES", 6.0)
    async with cluster(nats_server, api):
        assert shown(SERVICE)

        def only_what_lasts() -> bool:
            say(agent, "dataplane", THROTTLED, "lasts")
            assert shown(POD)["ServiceThrottled"]["lastTransitionTime"] == before
            return not shown(SERVICE)

        await until(only_what_lasts, 60)


async def test_a_finding_that_comes_and_goes_all_the_time_costs_the_api_server_little(
    nats_server: NatsServer, api: KubeApi, shown: Callable[[str], dict[str, dict[str, Any]]], bus_for: BusFor
) -> None:
    def writes() -> int:
        return sum(
            one["verb"] == "patch" and one.get("objectRef", {}).get("subresource") == "status"
            for one in api.audit()
            if f"system:serviceaccount:{ROOM}:cluster" in one["user"]["username"]
            and one["requestURI"].startswith(SERVICE)
            and one["stage"] == "ResponseComplete"
        )

    agent = await bus_for("dataplane", "n1")
    before = writes()
    async with cluster(nats_server, api):
        for number in range(300):
            say(agent, "dataplane", FOUND, "gone" if number % 2 else "came")
            await asyncio.sleep(0.01)
        say(agent, "dataplane", FOUND)
        await until(lambda: writes() > before, 40)
        await until(lambda: shown(SERVICE), 90)
        # One as it comes, and one each thirty seconds.
        assert writes() - before <= 4
