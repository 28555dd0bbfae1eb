"""Pods to measure between: airmesh's, on two nodes, with a policy on both; and the same wiring by the kernel alone.

airmesh's pods are real (kubelet, containerd, CNI); the programs run in their network namespaces. A NetworkPolicy
isolates both, in and out, and allows what is measured, so each new connection is judged and each packet is tracked.

The kernel's are two namespaces `am-bench-k1` and `am-bench-k2` on the lab's own fabric bridge, with a pod each behind
a veth of the same kind (a /32, a permanent neighbour for the gateway and for the pod, a route): plain forwarding,
no programs, no filter, no conntrack.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.first.stage import Stage
from lab.topology import FABRIC_BRIDGE

CLIENT, SERVER = "client", "server"
PORTS = {"rr": 7001, "bulk": 7002, "pps": 7003, "frames": 7004}
GATEWAY = "169.254.1.1"
GATEWAY_MAC = "02:00:00:00:0b:01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """A client's and a server's network namespace (paths that nsenter takes), and the server's address."""

    client: str
    server: str
    address: str


def policy(namespace: str) -> dict[str, object]:
    """Both pods isolated both ways; the ports that are measured allowed between them."""
    ports = [{"protocol": kind, "port": 7000, "endPort": 7100} for kind in ("TCP", "UDP")]
    other = [{"podSelector": {"matchLabels": {"measured": "true"}}}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "measured", "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {"measured": "true"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": other, "ports": ports}],
            "egress": [{"to": other, "ports": ports}],
        },
    }


def pod(namespace: str, name: str, node: str) -> dict[str, object]:
    """A pod that idles."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"measured": "true", "role": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "shop", "image": "lab.local/shop:1"}],
        },
    }


def mesh(on: Stage, client_node: str = "n1", server_node: str = "n2", *, guarded: bool = True) -> Ends:
    """airmesh's two pods, Ready, the policy known to both nodes."""
    namespace = on.pods_namespace()
    if guarded:
        on.apply(policy(namespace))
    on.apply(pod(namespace, CLIENT, client_node), pod(namespace, SERVER, server_node))
    on.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod", "--all", "--timeout=60s")
    address = on.get("pod", "-n", namespace, SERVER)["status"]["podIP"]
    return Ends(
        client=_sandbox(on, client_node, namespace, CLIENT),
        server=_sandbox(on, server_node, namespace, SERVER),
        address=address,
    )


def _sandbox(on: Stage, node: str, namespace: str, name: str) -> str:
    """Network namespace of a running pod, through the pid of its container."""
    ctr = ["ctr", "--address", str(on.where.node(node).containerd_socket), "-n", "k8s.io"]
    wanted = f'labels."io.kubernetes.pod.namespace"=={namespace},labels."io.kubernetes.pod.name"=={name}'
    found = set(on.run([*ctr, "containers", "ls", "-q", wanted]).split())
    for line in on.run([*ctr, "tasks", "ls"]).splitlines()[1:]:
        container, pid, _ = line.split()
        if container in found:
            return f"/proc/{pid}/ns/net"
    raise SystemExit(f"pod {namespace}/{name} runs nowhere on {node}")


def kernel(on: Stage, first: int = 1) -> Ends:
    """The same topology by routes alone: nodes `k<first>` (the client's) and the one after it."""
    numbers = (first, first + 1)
    nodes = [_kernel_node(on, number) for number in numbers]
    for (node, _), other in zip(nodes, reversed(numbers), strict=True):
        on.ip(node, f"route add 10.250.{other}.0/24 via 172.30.0.{100 + other} dev fab0")
    return Ends(client=nodes[0][1], server=nodes[1][1], address=f"10.250.{first + 1}.2")


def _kernel_node(on: Stage, number: int) -> tuple[str, str]:
    node, inner = on.namespace(f"k{number}"), on.namespace(f"k{number}p")
    on.run(["nsenter", f"--net={node}", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"])
    fabric = f"/run/netns/{on.plan.fabric_namespace}"
    on.ip(
        fabric,
        f"link add f-k{number} type veth peer name fab0 netns am-bench-k{number}",
        f"link set f-k{number} master {FABRIC_BRIDGE} up",
    )
    address = f"10.250.{number}.2"
    on.ip(
        node,
        f"addr add 172.30.0.{100 + number}/24 dev fab0",
        "link set fab0 up",
        f"link add pod0 address {GATEWAY_MAC} type veth peer name eth0 netns am-bench-k{number}p",
        "link set pod0 up",
        f"route add {address}/32 dev pod0",
    )
    on.ip(
        inner,
        "link set eth0 address 02:00:00:00:0b:02",
        "link set eth0 up",
        f"addr add {address}/32 dev eth0",
        f"route add {GATEWAY} dev eth0 scope link",
        f"route add default via {GATEWAY} dev eth0",
        f"neigh add {GATEWAY} lladdr {GATEWAY_MAC} dev eth0 nud permanent",
    )
    on.ip(node, f"neigh add {address} lladdr 02:00:00:00:0b:02 dev pod0 nud permanent")
    return node, inner
