"""The cloud provider of a lab: load balancers, and a client outside of the cluster.

Owns the process `cloud` (source `e2e/cloud`: the stock service controller over a router) in the fabric's namespace,
and the addresses there: a pool for Services of type LoadBalancer, and this outside host's own, in a network that is not
the nodes' (so that a pod can tell an outside client from a node). Started by the stock suite's runner alone; goes down
with the lab. Addresses are of the networks for documentation (RFC 5737, RFC 3849): nothing else here uses them.
"""

from __future__ import annotations

from pathlib import Path

from lab.cluster.launch import connect, tail
from lab.images import build
from lab.paths import Paths
from lab.topology import LabError, Topology
from linux.netns import command

CLOUD = build.Target(
    name="cloud",
    folder=build.SOURCE / "lab/conformance/e2e",
    sources=("go.mod", "go.sum", "cloud/main.go", "cloud/balancer.go"),
    go=True,
    estimate=60,
    package="./cloud",
)
NAME = "cloud"
FLAGS = (
    "--pool4=198.51.100.0/24",
    "--pool6=2001:db8:ba1::/112",
    "--source4=192.0.2.1",
    "--source6=2001:db8:c11::1",
)
"""The pools, and the addresses of the outside host."""


def outside(topology: Topology, argv: list[str]) -> list[str]:
    """`argv` in the fabric's namespace: a host beside the nodes, not one of them. Keeps its pid."""
    return command(f"/run/netns/{topology.fabric_namespace}", *argv)


async def start_outside(where: Paths, topology: Topology, name: str, argv: list[str]) -> None:
    """Start a process in the fabric's namespace where it does not run yet. Raises `LabError`."""
    launcher = await connect(where)
    try:
        known = (await launcher.states()).get(name)
        if known is not None and known.running:
            return
        await launcher.start(name, outside(topology, argv), always=True)
        if not (await launcher.states())[name].running:
            raise LabError(f"{name} ended at once:\n{tail(where.log(name))}")
    finally:
        launcher.close()


async def start(where: Paths, topology: Topology, program: Path) -> None:
    """Start the cloud where it does not run yet. Raises `LabError`."""
    argv = [str(program), f"--kubeconfig={where.kubeconfig_of('admin')}", *FLAGS]
    await start_outside(where, topology, NAME, argv)
