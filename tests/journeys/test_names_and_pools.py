"""Names and pools in the lab: CoreDNS is what the mesh decided, its answers are counted, and bad pools are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

POOL = """
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {{name: {name}}}
spec: {spec}
"""


def coredns(lab: Lab, kind: str) -> Any:
    return lab.get(kind, "-n", "kube-system", "coredns")


def test_coredns_runs_what_the_mesh_decided(lab: Lab, airmesh: Callable[..., Any]) -> None:
    decided = json.dumps(airmesh("dns"))
    deployment = coredns(lab, "deployment")
    assert deployment["spec"]["replicas"] == 2
    assert json.dumps(coredns(lab, "configmap")["data"]["Corefile"])[1:-1] in decided
    lab.until("CoreDNS is available", lambda: coredns(lab, "deployment")["status"].get("availableReplicas", 0) == 2, 60)


def test_what_is_changed_by_hand_comes_back(lab: Lab) -> None:
    before = coredns(lab, "configmap")["data"]["Corefile"]
    patch = json.dumps({"data": {"Corefile": before.replace("ttl 30", "ttl 31")}})
    lab.kubectl("patch", "configmap", "-n", "kube-system", "coredns", "--type=merge", "-p", patch)
    lab.kubectl("scale", "deployment", "-n", "kube-system", "coredns", "--replicas=3")
    lab.until("the Corefile is back", lambda: coredns(lab, "configmap")["data"]["Corefile"] == before)
    lab.until("two replicas are back", lambda: coredns(lab, "deployment")["spec"]["replicas"] == 2)
    fields = lab.get("configmap", "-n", "kube-system", "coredns", "--show-managed-fields")["metadata"]["managedFields"]
    owners = {entry["manager"] for entry in fields if "f:Corefile" in entry["fieldsV1"].get("f:data", {})}
    assert owners == {"airmesh-dns"}


def test_what_a_person_adds_to_the_corefile_stays(lab: Lab) -> None:
    def text() -> str:
        found: str = coredns(lab, "configmap")["data"]["Corefile"]
        return found

    def write(corefile: str) -> None:
        patch = json.dumps({"data": {"Corefile": corefile}})
        lab.kubectl("patch", "configmap", "-n", "kube-system", "coredns", "--type=merge", "-p", patch)

    before, stub = text(), "acme.local:53 {\n    errors\n    forward . 192.0.2.53\n}\n"
    try:
        write(before.replace("ttl 30", "ttl 31") + stub)
        lab.until("ours is back and the stub domain stays", lambda: text() == before + stub)
        write(before + "acme.local:53 {\n")
        reported = ("get", "events", "-n", "kube-system", "--field-selector", "involvedObject.name=coredns")
        lab.until("the broken edit is told", lambda: "CorefileBroken" in lab.kubectl(*reported))
        assert text() == before + "acme.local:53 {\n"
    finally:
        write(before)


def test_queries_of_pods_are_counted(lab: Lab, space: LabNamespace, airmesh: Callable[..., Any]) -> None:
    space.pod("asker", "n1")
    asking = (
        "for i in $(seq 5); do dig +short +tries=1 kubernetes.default.svc.cluster.local; "
        "dig +short +tries=1 nobody.default.svc.cluster.local; done > /dev/null"
    )

    def counted() -> bool:
        # asked again each time: a server's first scrape is only the ground that later ones are measured from
        lab.exec(space.namespace, "asker", "sh", "-c", asking)
        reported = json.dumps(airmesh("dns"))
        return "NXDOMAIN" in reported and "NOERROR" in reported

    lab.until("the queries are in a report", counted, 40)


def test_a_name_that_was_asked_for_too_early_is_there_as_soon_as_its_service_is(lab: Lab, space: LabNamespace) -> None:
    space.pod("early", "n2")
    name = f"late.{space.namespace}.svc.cluster.local"

    def answers() -> set[str]:
        """Of both servers, for some."""
        asking = f"for i in $(seq 8); do dig +short +tries=1 {name}; done"
        return set(lab.exec(space.namespace, "early", "sh", "-c", asking).split())

    assert answers() == set()
    lab.kubectl("create", "service", "clusterip", "late", "-n", space.namespace, "--tcp=80")
    lab.until("the name has its address", lambda: bool(answers()), 5)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("{cidr: 10.99.1.0/16}", "has host bits set; clear the bits behind the prefix length"),
        ("{cidr: pods}", "not an IPv4 or IPv6 range"),
        ("{cidr: 10.99.0.0/28}", "the pool is smaller than one block; widen cidr or raise blockSize"),
        ("{cidr: 'fd00:99::/56', blockSize: 64}", "blockSize must be 20 to 32 for an IPv4 pool and 116 to 128"),
        ("{cidr: 'fd00:99::/56', ipipMode: Always}", "IPIP carries IPv4 only"),
        ("{cidr: 10.99.0.0/16, blocksize: 26}", 'unknown field "spec.blocksize"'),
        ("{}", "spec.cidr: Required value"),
    ],
)
def test_a_pool_that_means_nothing_is_refused_and_nothing_is_made(lab: Lab, spec: str, sentence: str) -> None:
    with pytest.raises(AssertionError) as caught:
        lab.apply(POOL.format(name="bad", spec=spec))
    assert sentence in str(caught.value)
    assert "bad" not in {pool["metadata"]["name"] for pool in lab.get("ippools")["items"]}


@pytest.mark.parametrize(
    ("spec", "reason", "says"),
    [
        ("{cidr: 10.244.128.0/20}", "CIDROverlap", "10.244.128.0/20 overlaps 10.244.0.0/16 of IPPool"),
        ("{cidr: 10.99.0.0/16, namespaceSelector: has(a)}", "UnsupportedField", "spec.namespaceSelector 'has(a)'"),
        ("{cidr: 'fd00:99::/56', allowedUses: [LoadBalancer]}", "UnsupportedField", "spec.allowedUses LoadBalancer"),
    ],
)
def test_a_pool_that_gives_nothing_says_why_wherever_one_looks(
    lab: Lab, airmesh: Callable[..., Any], spec: str, reason: str, says: str
) -> None:
    def reported(*command: str) -> bool:
        return any(says in problem for problem in airmesh(*command, exits=(0, 1))["problems"])

    lab.apply(POOL.format(name="odd", spec=spec))
    try:
        fields = f"--field-selector=involvedObject.kind=IPPool,involvedObject.name=odd,reason={reason}"
        lab.until(
            "an Event stands on the pool",
            lambda: any(says in one["message"] for one in lab.get("events", fields)["items"]),
        )

        def allocatable() -> dict[str, str]:
            conditions = lab.get("ippool", "odd").get("status", {}).get("conditions", [])
            return next((one for one in conditions if one["type"] == "Allocatable"), {})

        lab.until("its condition is written", lambda: allocatable().get("status") == "False")
        assert (allocatable()["reason"], says in allocatable()["message"]) == (reason, True)
        lab.until("ipam says so too", lambda: reported("ipam", "show"))
        lab.until("and the status of all", lambda: reported("status"))
    finally:
        lab.kubectl("delete", "ippool", "odd")
    lab.until("nothing is told of it any more", lambda: not reported("status"))


def test_an_unknown_kind_is_one_clear_error(lab: Lab) -> None:
    with pytest.raises(AssertionError) as caught:
        lab.apply("apiVersion: crd.projectcalico.org/v1\nkind: IPPol\nmetadata: {name: x}\nspec: {}\n")
    assert 'no matches for kind "IPPol"' in str(caught.value)


def test_nodes_say_that_the_network_is_there_and_which_blocks_they_hold(lab: Lab) -> None:
    for node in lab.get("nodes")["items"]:
        conditions = {entry["type"]: entry for entry in node["status"]["conditions"]}
        assert (conditions["NetworkUnavailable"]["status"], conditions["NetworkUnavailable"]["reason"]) == (
            "False",
            "AirmeshReady",
        )
        blocks = node["metadata"]["annotations"]["airmesh.io/blocks"].split(",")
        assert any(":" in block for block in blocks)
        assert any("." in block for block in blocks)


def test_the_cluster_service_may_die(lab: Lab, space: LabNamespace) -> None:
    """What happened meanwhile is there once it is back; a standby or a restart makes no difference to the mirror."""
    lab.kill("cluster")
    space.pod("late", "n2")
    assert len(space.addresses("late")) == 2
