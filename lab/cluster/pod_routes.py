"""Routes to pods on the API server's machine, in a lab whose agents are pods: the network's part of such a cluster.

That machine is no node there, so no agent runs on it (docs/install.md, "What it does not do"); its network has to route
pods' addresses to their nodes. Run as `python -m lab.cluster.pod_routes <lab>`: each second the blocks that Nodes are
annotated with become routes by their nodes' addresses, and what no Node has any more goes. Ours have a protocol number
of their own (rtnetlink's `rtm_protocol`). A lab in which each agent is a process has a gateway instead.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from lab.cluster import namespaces
from lab.cluster.api import Api
from lab.cluster.port_forward import read_ports
from lab.paths import paths, settings
from lab.topology import LabError, plan
from proto.annotations import BLOCKS
from proto.net import Network

PROTOCOL = 0xAB
_EVERY = 1.0
Routes = Mapping[Network, str]
"""Gateways by block."""


def wanted(nodes: Iterable[Mapping[str, Any]]) -> dict[Network, str]:
    """The routes to the pods of Nodes (as the API server tells them), each by the node's address of that family."""
    found: dict[Network, str] = {}
    for node in nodes:
        addresses = [one["address"] for one in node["status"].get("addresses", []) if one["type"] == "InternalIP"]
        by_version = {ip_address(address).version: address for address in addresses}
        text = node["metadata"].get("annotations", {}).get(BLOCKS, "")
        for block in map(ip_network, filter(None, text.split(","))):
            if block.version in by_version:
                found[block] = by_version[block.version]
    return found


def changes(present: Routes, routes: Routes) -> list[str]:
    """Lines for `ip -batch` that make one of the other: what is new or another first."""
    lines = [
        f"route replace {block} via {gateway} proto {PROTOCOL}"
        for block, gateway in routes.items()
        if present.get(block) != gateway
    ]
    return lines + [f"route del {one} proto {PROTOCOL}" for one in present if one not in routes]


def _present(netns: str) -> dict[Network, str]:
    found: dict[Network, str] = {}
    for version in ("-4", "-6"):
        said = namespaces.run(["ip", "-n", netns, "-j", version, "route", "show", "proto", str(PROTOCOL)])
        found |= {ip_network(one["dst"]): one["gateway"] for one in json.loads(said or "[]")}
    return found


def apply(netns: str, routes: Routes) -> None:
    """Make these the routes of a network namespace; what another put there stays. Raises `LabError`."""
    if lines := changes(_present(netns), routes):
        namespaces.batch(lines, netns)
        print("\n".join(lines), flush=True)


async def serve(lab: str) -> None:
    """Follow the Nodes for ever; a pass that fails is told and made again."""
    where, netns = paths(lab, settings()), plan(lab, 1).control.namespace
    api = Api(where, read_ports(where.ports).api)
    while True:
        # Of an API server that does not answer, as of one that knows no Node yet, nothing is taken away.
        if nodes := await api.items("/api/v1/nodes"):
            try:
                await asyncio.to_thread(apply, netns, wanted(nodes))
            except LabError as error:
                print(error, file=sys.stderr, flush=True)
        await asyncio.sleep(_EVERY)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
