"""The kernel's VXLAN as Flannel lays it: a device a node, permanent entries, routes through the other's address on it.

Two namespaces more on the lab's fabric bridge, wired as `bench.first.ground` wires the ones with routes alone; the
pods' links are as much smaller as the tunnel takes. Source: flannel, pkg/backend/vxlan/device.go, vxlan_network.go.
"""

from __future__ import annotations

from bench.first import ground
from bench.first.ground import Ends
from bench.first.stage import Stage
from lab.cluster import namespaces

VNI, PORT, MTU = 1, 8472, 1450
DEVICE = "flannel.1"


def mac(number: int) -> str:
    """Of a node's device."""
    return f"02:00:00:00:0f:{number:02x}"


def kernel_vxlan(on: Stage, first: int) -> Ends:
    """Nodes `k<first>` (the client's) and the one after it, VXLAN between them."""
    ends = ground.kernel(on, first)
    numbers = (first, first + 1)
    for number, other in zip(numbers, reversed(numbers), strict=True):
        node = str(namespaces.NETNS / f"am-bench-k{number}")
        tunnel = f"type vxlan id {VNI} dev fab0 local 172.30.0.{100 + number} dstport {PORT} nolearning"
        on.ip(
            node,
            f"link add {DEVICE} address {mac(number)} mtu {MTU} {tunnel}",
            f"addr add 10.250.{number}.0/32 dev {DEVICE}",
            f"link set {DEVICE} up",
            f"neigh add 10.250.{other}.0 lladdr {mac(other)} dev {DEVICE} nud permanent",
            f"route replace 10.250.{other}.0/24 via 10.250.{other}.0 dev {DEVICE} onlink",
            f"link set pod0 mtu {MTU}",
        )
        entry = ["bridge", "fdb", "append", mac(other), "dev", DEVICE, "dst", f"172.30.0.{100 + other}"]
        on.run(["nsenter", f"--net={node}", *entry])
        on.ip(f"{node}p", f"link set eth0 mtu {MTU}")
    return ends
