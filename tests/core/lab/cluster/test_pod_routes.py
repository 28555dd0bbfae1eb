"""The network's routes to pods, for the machine of the API server."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from lab.cluster.pod_routes import PROTOCOL, changes, wanted


def node(blocks: str, *addresses: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "annotations": {"airmesh.io/blocks": blocks}},
        "status": {"addresses": [{"type": "InternalIP", "address": one} for one in addresses]},
    }


def test_blocks_go_by_their_nodes_address_of_that_family() -> None:
    n1 = node("10.244.0.0/26,fd00:10:244::/122", "172.30.0.11", "fd00:172:30::11")
    n2 = node("10.244.0.64/26,fd00:10:244::40/122", "172.30.0.12")
    assert wanted([n1, n2, {"metadata": {"name": "n3"}, "status": {}}, node("", "172.30.0.14")]) == {
        ip_network("10.244.0.0/26"): "172.30.0.11",
        ip_network("fd00:10:244::/122"): "fd00:172:30::11",
        ip_network("10.244.0.64/26"): "172.30.0.12",
    }


def test_only_what_changes_is_written() -> None:
    one, two, three = (ip_network(f"10.244.{number}.0/26") for number in range(3))
    present = {one: "172.30.0.11", two: "172.30.0.12", three: "172.30.0.13"}
    assert changes(present, present) == []
    assert changes(present, {one: "172.30.0.11", two: "172.30.0.11"}) == [
        f"route replace {two} via 172.30.0.11 proto {PROTOCOL}",
        f"route del {three} proto {PROTOCOL}",
    ]
