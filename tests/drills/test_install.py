"""airmesh as its users have it: `airmesh install` on kubelets, a tour, `airmesh uninstall` that leaves nothing on a
node, and the same again. In a lab whose agents are pods; its images are those of `make images`.

What a node has of airmesh is looked for here by other means than the uninstall's own: the node's links, routes, tables
and folders are held against the plan of the lab, and the kernel is asked for each program and map that was pinned.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import leftovers, mesh, node, pinned, pods
from lab.cluster.pinned import BpfObject
from lab.topology import FABRIC_LINK, MANAGEMENT_LINK
from proto.annotations import ADMITTED
from tests.labkit import Lab
from tests.podkit import TAG, airmesh, lab_command

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1200)]
_KERNEL_SECONDS = 30.0
"""The kernel frees maps and programs after their last user, not with it."""


def pinned_objects(lab: Lab) -> set[BpfObject]:
    """Programs, maps and links that agents pinned on any node."""
    return set(pinned.behind(leftovers.pins(lab.where)))


def _json(lab: Lab, name: str, *command: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lab.inside(name, *command) or "[]")
    return found


def residue(lab: Lab, name: str) -> list[str]:
    """All on a node that the lab did not put there."""
    host = lab.node(name)
    own, wires = {"kernel", None}, ("lo", FABRIC_LINK, MANAGEMENT_LINK, None)
    links = {one["ifname"] for one in _json(lab, name, "ip", "-j", "link")}
    found = [f"link {one}" for one in sorted(links.difference(wires))]
    for family in ("-4", "-6"):
        routes = _json(lab, name, "ip", "-j", family, "route", "show", "table", "all")
        found += [f"route {one}" for one in routes if one.get("protocol") not in own or one.get("dev") not in wires]
        rules = _json(lab, name, "ip", "-j", family, "rule")
        found += [f"rule {rule}" for rule in rules if rule["table"] not in ("local", "main", "default")]
    found += [f"nftables: {line}" for line in lab.inside(name, "nft", "list", "ruleset").splitlines()]
    for link in wires[:-1]:
        qdiscs = _json(lab, name, "tc", "-j", "qdisc", "show", "dev", link)
        found += [f"{link}: {one['kind']}" for one in qdiscs if one["kind"] in ("clsact", "ingress")]
    of = lab.where.node(host.name)
    kept = {of.on_host(node.CNI_BIN) / "loopback"}
    for folder in node.HOST_FOLDERS:
        if folder == Path("/run/netns"):  # the runtime's, of pods that run
            continue
        found += [f"file {path}" for path in sorted(of.on_host(folder).rglob("*")) if path not in kept]
    pins = [path for path in leftovers.pins(lab.where) if of.bpffs in path.parents and path.parent != of.bpffs]
    return found + [f"pin {path}" for path in pins]  # at the root are the kernel's own two, and agents' are below


def test_the_tour_goes_through(installed: Lab) -> None:
    assert "everything is as it should be" in airmesh(installed, "check")
    lab_command("tour", "--name", installed.where.lab)


def test_each_node_made_its_own_keys_and_makes_others_while_its_agents_run(installed: Lab) -> None:
    """None lies in a Secret; the Node says which was let in; a rotation is a Job on the node."""
    found = [one["metadata"]["name"] for one in installed.get("secrets", "--namespace", "airmesh-system")["items"]]
    assert [name for name in found if name.startswith("airmesh-node-")] == []
    name = installed.topology.nodes[0].name
    before = admitted(installed, name)
    assert set(before) == {"dataplane", "routing"}
    assert f"new keys: node {name}" in airmesh(installed, "keys", "rotate", "--node", name)
    after = admitted(installed, name)
    assert {role for role in before if before[role] != after[role]} == {"dataplane", "routing"}
    assert "everything is as it should be" in airmesh(installed, "check")


def admitted(lab: Lab, node: str) -> dict[str, str]:
    """By which key each agent of a node was let onto the bus."""
    (found,) = [one for one in lab.get("nodes")["items"] if one["metadata"]["name"] == node]
    annotations = found["metadata"].get("annotations") or {}
    return {name.removeprefix(ADMITTED): text for name, text in annotations.items() if name.startswith(ADMITTED)}


def test_an_uninstall_leaves_nothing_and_what_comes_after_it_works(installed: Lab) -> None:
    lab, names = installed, [host.name for host in installed.topology.nodes]
    objects, cidrs = pinned_objects(lab), pools(lab)
    assert set(pods.POOLS) <= set(cidrs)
    assert {one.kind for one in objects} == {"map", "prog", "link"}
    assert all(residue(lab, name) for name in names), "there is nothing to be taken away"
    airmesh(lab, "uninstall", "--yes")
    assert {name: residue(lab, name) for name in names} == {name: [] for name in names}
    deadline = time.monotonic() + _KERNEL_SECONDS
    while (left := [one for one in objects if pinned.exists(one)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    for one in lab.get("nodes")["items"]:
        assert "airmesh" not in json.dumps([one["metadata"].get("annotations"), one["metadata"].get("labels")])
        assert "airmesh" not in json.dumps(one["spec"]).lower()
        assert "Airmesh" not in json.dumps(one["status"].get("conditions"))
    assert pools(lab) == cidrs, "pools are a person's"

    cgroup = mesh.unified_cgroup(Path("/proc/self/mounts").read_text())
    said = airmesh(lab, *pods.install_arguments(lab.topology, cgroup, TAG))
    assert "revision 1" in said, said
    assert "everything is as it should be" in airmesh(lab, "check")
    # Pods that ran through it have no network any more: they start anew.
    for namespace in ("shop", "prod", "kube-system"):
        lab.kubectl("delete", "pods", "--namespace", namespace, "--all", "--wait=false")
    asyncio.run(pods.take_observer(lab.where))  # its key is another one by now
    lab_command("tour", "--name", lab.where.lab)


def pools(lab: Lab) -> list[str]:
    """CIDRs of all IPPools."""
    return sorted(one["spec"]["cidr"] for one in lab.get("ippools.crd.projectcalico.org")["items"])
