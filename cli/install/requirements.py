"""What an installation asks of a cluster before anything is touched, and the small decisions about its nodes.

Each refusal is one sentence that names what is missing. `check_cluster` asks the API server; the rest is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from cli.faults import Declined
from cli.install.kinds import Object
from cli.install.kubernetes import Kubernetes, Refusal
from cli.install.names import NAMESPACE
from cli.install.secrets import Host, host_of
from proto.annotations import ADMITTED, BLOCKS

KUBERNETES = (1, 30)
"""AppArmor profiles as fields of a pod; before, the API server refuses the manifests."""
_ALL_OF_THEM = ("*", "*", "*", "")
_IN_ONE = "get list create patch delete"
_WHOLE = "get create patch delete"
_NEEDED = (
    ("", "namespaces", _WHOLE, ""),
    ("", "configmaps secrets", _IN_ONE, NAMESPACE),
    ("", "serviceaccounts services resourcequotas", _WHOLE, NAMESPACE),
    ("", "pods", "list", NAMESPACE),
    ("", "pods/log", "get", NAMESPACE),
    ("", "nodes", "get list patch", ""),
    ("", "nodes/status", "patch", ""),
    ("apiextensions.k8s.io", "customresourcedefinitions", "get create patch", ""),
    ("apps", "daemonsets deployments statefulsets", _IN_ONE, NAMESPACE),
    ("apps", "daemonsets", "list", "kube-system"),
    ("batch", "jobs", _IN_ONE, NAMESPACE),
    ("crd.projectcalico.org", "ippools", "create list", ""),
    ("projectcalico.org", "ippools", "list", ""),
    ("policy", "poddisruptionbudgets", _WHOLE, NAMESPACE),
    # Who makes a role of rights that are not its own, and gives it to somebody.
    ("rbac.authorization.k8s.io", "clusterroles", f"{_WHOLE} escalate bind", ""),
    ("rbac.authorization.k8s.io", "clusterrolebindings", _WHOLE, ""),
    ("rbac.authorization.k8s.io", "roles", f"{_WHOLE} escalate bind", "kube-system"),
    ("rbac.authorization.k8s.io", "rolebindings", _WHOLE, "kube-system"),
)
"""Group, resources, verbs, namespace."""
RIGHTS = tuple(
    (verb, group, resource, namespace)
    for group, resources, verbs, namespace in _NEEDED
    for resource in resources.split()
    for verb in verbs.split()
)
"""Verb, group, resource, namespace: without these nothing is begun, since it could be neither ended nor undone."""
TAINT = "node.airmesh.io/agent-not-ready"
CONDITION = "NetworkUnavailable"
_CONTROL = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_BLOCK = {4: 26, 6: 122}
_SERVERS = 3


def version_of(text: str) -> tuple[int, int]:
    """(1, 30) of ``v1.30.2+k3s1``; (0, 0) where there is none."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_version(text: str) -> None:
    """Raises `Declined` for a Kubernetes that is too old."""
    if version_of(text) < KUBERNETES:
        least = ".".join(map(str, KUBERNETES))
        raise Declined(
            f"this cluster runs Kubernetes {text}: airmesh needs {least} or newer", "upgrade the cluster first"
        )


def check_cluster(api: Kubernetes) -> None:
    """Version and rights. Raises `Declined` naming everything that is missing at once."""
    try:
        check_version(str(api.call("GET", "/version")["gitVersion"]))
        missing = [] if api.may(*_ALL_OF_THEM) else [right for right in RIGHTS if not api.may(*right)]
    except Refusal as refusal:
        raise refusal.complaint("look at the cluster") from refusal
    if missing:
        said = ", ".join(f"{verb} {resource}" for verb, _, resource, _ in missing)
        raise Declined(
            f"you may not: {said}", "use the kubeconfig of a cluster administrator (--kubeconfig, --context)"
        )


def check_hosts(hosts: Sequence[Host], servers: Sequence[Host]) -> None:
    """Raises `Declined` for a cluster without nodes, or a node for the bus without an address."""
    if not hosts:
        raise Declined("this cluster has no node", "join one, then install")
    nameless = [host.name for host in servers if not host.addresses]
    if nameless:
        raise Declined(
            f"node {nameless[0]} has no InternalIP: agents would not find the bus there",
            "give its kubelet --node-ip, or use a bus elsewhere with --nats",
        )


def choose_servers(chosen: Sequence[Host], nodes: Sequence[Mapping[str, Any]]) -> tuple[Host, ...]:
    """Those that carry the label already; else three nodes or one, control planes first, then by name."""
    if chosen:
        return tuple(sorted(chosen, key=lambda host: host.name))

    def late(node: Mapping[str, Any]) -> tuple[bool, str]:
        labels = node["metadata"].get("labels") or {}
        return not any(name in labels for name in _CONTROL), node["metadata"]["name"]

    found = [host_of(node) for node in sorted(nodes, key=late)]
    return tuple(found[: _SERVERS if len(found) >= _SERVERS else 1])


def established(crd: Mapping[str, Any]) -> bool:
    """Whether the API serves the kind."""
    conditions = crd.get("status", {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def pools(api: Kubernetes) -> list[Object]:
    """All IPPools, in both of Calico's spellings."""
    versions = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
    return [one for version in versions for one in api.items(version, "IPPool")]


def pool(cidr: str) -> Object:
    """The first IPPool of a family."""
    network = ip_network(cidr)
    return {
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPPool",
        "metadata": {"name": f"default-ipv{network.version}"},
        "spec": {
            "cidr": str(network),
            "blockSize": max(_BLOCK[network.version], network.prefixlen),
            "natOutgoing": True,
            "nodeSelector": "all()",
        },
    }


def unmarked(node: Mapping[str, Any]) -> Iterator[Object]:
    """JSON merge patches that take off a Node what `cluster` wrote on it: the taint, the annotations. The condition
    is part of its status: `without_condition`.
    """
    metadata = node.get("metadata", {})
    taints = node.get("spec", {}).get("taints") or []
    others = [one for one in taints if one["key"] != TAINT]
    if len(others) < len(taints):
        yield {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "spec": {"taints": others or None}}
    annotations = metadata.get("annotations") or {}
    ours = [name for name in annotations if name == BLOCKS or name.startswith(ADMITTED)]
    if ours:
        yield {"metadata": {"annotations": dict.fromkeys(ours)}}


def without_condition(node: Mapping[str, Any]) -> Object | None:
    """The strategic merge patch of a Node's status that takes our word on its network away; None where there is none.
    Another network's word stays.
    """
    conditions = node.get("status", {}).get("conditions") or ()
    if not any(one["type"] == CONDITION and str(one.get("reason", "")).startswith("Airmesh") for one in conditions):
        return None
    return {"status": {"conditions": [{"type": CONDITION, "$patch": "delete"}]}}
