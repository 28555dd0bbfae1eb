"""Settings of a node's dataplane; each is read from ``AIRMESH_<NAME>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chassis.runtime.settings import BaseSettings
from proto.net import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    """What one node's agent needs to know."""

    node: str
    """Name of the Node object."""
    state_dir: Path
    """Folder of the address journal; must survive a reboot."""
    uplinks: tuple[str, ...]
    """Interfaces that lead to other nodes and to API servers: by no other is a packet taken for one of theirs, or of
    their pods. The smallest MTU among them, less what the models of the pools add, is the pods'."""
    loopback: str = ""
    """Interface that leads nowhere and has the node's own address, as ``lo`` or ``dummy0``, where that address is on
    none of the uplinks: what is masqueraded gets it, whichever uplink it takes."""
    gateway: bool = False
    """A machine that is no node, of the control plane: its way by tunnels to the nodes' pods, and nothing else. No CNI,
    no pods, no policy, no Services."""
    pin_root: Path = Path("/sys/fs/bpf/airmesh")
    """Folder on bpffs for programs and maps; one for each node on a machine."""
    cgroup: Path = Path("/sys/fs/cgroup")
    """A cgroup2 folder that holds every pod: the socket programs hang there."""
    cni_socket: Path = Path("/run/airmesh/cni.sock")
    """Socket for the CNI executable."""
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    """Where the runtime looks for its network configuration."""
    sysctl_root: Path = Path("/proc/sys")
    """Where the kernel's sysctls are (``net/…``): another place in a container, whose own /proc/sys is read-only."""
    bpf_cache: Path = Path("/var/cache/airmesh/bpf")
    """Folder of compiled eBPF programs."""
    tcx: bool = False
    """Hang the pods' programs by tcx links instead of cls_bpf filters. A packet passes a tcx link some 20 ns sooner,
    but each one that is made waits for the kernel's grace periods (25 ms a pod, where a filter takes 0.3). Uplinks
    always have tcx links where the kernel knows them (6.6). Both outlive the agent."""
    boot_id: str = ""
    """Names this boot of the node; empty: the kernel's boot id and the namespace's cookie."""
    add_deadline: float = 20.0
    """Seconds that an ADD waits for the pod's object and policy."""
    address_cooldown: float = 130.0
    """Seconds that a freed address rests: longer than conntrack remembers its last owner."""
    spare_addresses: int = 16
    """Another block is asked for when fewer addresses of a family are free."""
    gc_grace: float = 60.0
    """Seconds between the two lists that must both lack an attachment before it is undone."""
    conntrack_entries: int = 0
    """Conntrack entries, from 131,072 to 1,048,576, rounded down to a power of two; 0: one for each 32 KiB of memory. A
    table that is pinned grows while flows go on, and never shrinks before the node boots."""
    flow_budget: int = 0
    """Conntrack entries that one pod may have for flows it begins, and again for flows that others begin; 0: an eighth
    of the table each."""
    table_memory: float = 0.08
    """Share of the node's memory that the tables of Services, addresses and policy may have when all are full, in the
    kernel and in this process. They begin small and grow as far as this allows."""
    service_entries: int = 0
    """Entries of the table of Services (one for each address, port and protocol); 0: grows from 65,536."""
    backend_entries: int = 0
    """Entries of the tables of backends (one for each port of each endpoint); 0: grows from 262,144."""
    ipcache_entries: int = 0
    """Entries of the table of addresses (one for each pod and node of the cluster); 0: grows from 524,288."""
    flow_events_per_second: float = 500.0
    """Flow events that this node publishes at most; the rest is counted."""
    external_ips: tuple[Network, ...] = ()
    """Networks whose addresses Services may have as ``spec.externalIPs``. None by default: whoever may write a Service
    could take any address away from everybody else (CVE-2020-8554)."""
    proxy_health_port: int = 10256
    """Port of /healthz, at which load balancers ask for the node as they ask kube-proxy; 0: none."""
    measure_dns: bool = True
    """Measure pods' DNS on their links: how long answers take, what becomes of queries, which names are asked for."""
    publish_forwarded: bool = False
    """Also publish an event for each new flow that was let through."""
