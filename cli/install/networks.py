"""Which other network runs in a cluster, and what has to go, in order, before airmesh takes its place.

A network is known by its DaemonSet, where its own manifests put it (Flannel 0.26, Calico 3.29 with its operator or
without, Cilium 1.16). Without one, nodes that have a ``podCIDR`` may be reached by routes that somebody sets: the
runtime's `ptp` or `bridge` plugin with static routes, as `kubenet` and small clusters have it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.install.kinds import Object
from cli.install.kubernetes import Kubernetes, Refusal

DaemonSet = tuple[str, str]
"""Namespace and name of a DaemonSet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network that may run, and how it is taken away."""

    name: str
    daemon_sets: tuple[DaemonSet, ...]
    objects: str
    """What is deleted in the API, so that nothing makes the rest anew."""
    configuration: str
    """The runtime's file in `/etc/cni/net.d` on each node."""
    state: str
    """What else of it is in a node's kernel and folders until the node starts again."""


NETWORKS = (
    Network(
        name="Calico",
        daemon_sets=(("calico-system", "calico-node"), ("kube-system", "calico-node")),
        objects="Installation `default` of its operator and the operator, or DaemonSet calico-node and Deployment "
        "calico-kube-controllers; its kinds and IPPools stay, airmesh reads them",
        configuration="10-calico.conflist",
        state="cali*, tunl0, vxlan.calico, wireguard.cali, iptables chains cali-*, routes of protocol bird or 80, "
        "/var/lib/calico",
    ),
    Network(
        name="Cilium",
        daemon_sets=(("kube-system", "cilium"),),
        objects="the Helm release cilium, or DaemonSet cilium and Deployment cilium-operator",
        configuration="05-cilium.conflist",
        state="cilium_host, cilium_net, cilium_vxlan, lxc*, its programs on links and cgroups, /sys/fs/bpf/cilium",
    ),
    Network(
        name="Flannel",
        daemon_sets=(("kube-flannel", "kube-flannel-ds"), ("kube-system", "kube-flannel-ds")),
        objects="DaemonSet kube-flannel-ds and ConfigMap kube-flannel-cfg",
        configuration="10-flannel.conflist",
        state="flannel.1, cni0, iptables chains FLANNEL-FWD and FLANNEL-POSTRTG, /run/flannel, /var/lib/cni",
    ),
)
STATIC = Network(
    name="a network of static routes",
    daemon_sets=(),
    objects="whatever sets its routes (of the API it has nobody but kube-controller-manager's --allocate-node-cidrs)",
    configuration="file of the `ptp` or `bridge` plugin",
    state="the routes to other nodes' podCIDR, cni0, /var/lib/cni",
)


def running(seen: Collection[DaemonSet], nodes: Sequence[Mapping[str, Any]]) -> tuple[Network, ...]:
    """Networks that the API knows of, by name."""
    found = tuple(one for one in NETWORKS if any(named in seen for named in one.daemon_sets))
    ranges = any((node.get("spec") or {}).get("podCIDR") for node in nodes)
    return found or ((STATIC,) if ranges else ())


def look(api: Kubernetes) -> tuple[Network, ...]:
    """Networks that run in the cluster; what may not be listed is not seen."""
    namespaces = sorted({namespace for one in NETWORKS for namespace, _ in one.daemon_sets})
    seen = {(namespace, one["metadata"]["name"]) for namespace in namespaces for one in _daemon_sets(api, namespace)}
    return running(seen, api.items("v1", "Node"))


def _daemon_sets(api: Kubernetes, namespace: str) -> Sequence[Object]:
    try:
        return api.items("apps/v1", "DaemonSet", namespace)
    except Refusal:
        return ()


def warning(found: Sequence[Network]) -> str:
    """What is to be known where airmesh is installed beside others; empty: nothing."""
    said = " and ".join(one.name for one in found if one.daemon_sets)
    if not said:
        return ""
    return (
        f"note: {said} runs in this cluster, too: pods have the network whose file is the first in /etc/cni/net.d when "
        "they start, and those of two networks do not reach each other; `airmesh install --migrate` says in which "
        "order the other one goes"
    )


def why_not(found: Sequence[Network]) -> tuple[str, str]:
    """Why airmesh does not move in beside these node by node, and what leads there, in order."""
    if not found:
        seen = "no Flannel, Calico or Cilium runs in this cluster, and no node has a podCIDR"
        return f"--migrate is not supported, and nothing is to be migrated: {seen}", "install without it"
    said = " and ".join(one.name for one in found)
    wrong = (
        f"--migrate is not supported: this cluster runs {said}, and pods of two networks would reach each other only "
        "if the routes and the policy of each knew of the other's"
    )
    left = "; ".join(one.state for one in found)
    steps = (
        "cordon and drain all nodes",
        *(f"delete {one.objects}" for one in found),
        *(f"on each node take its {one.configuration} out of /etc/cni/net.d" for one in found),
        f"start each node again, so that its kernel has nothing of it left ({left})",
        "install without --migrate",
        "uncordon",
    )
    elsewhere = "move workloads to a cluster that was made with airmesh"
    return wrong, f"{elsewhere}; or take this one's pods down for the change, in this order: {'; then '.join(steps)}"
