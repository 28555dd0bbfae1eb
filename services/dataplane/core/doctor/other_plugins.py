"""Checks for other programs that do this agent's work on its node: kube-proxy, and what another CNI plugin left behind.

kube-proxy's rules are told by the chains that its backends make (``KUBE-SERVICES`` and ``KUBE-SVC-…`` in iptables, the
table ``kube-proxy`` in nftables, virtual servers in IPVS); the kubelet's own chains (``KUBE-FIREWALL``,
``KUBE-KUBELET-CANARY``, hints) are none. Of a plugin they are told by the prefixes of its chains; of its configuration
by the order in which runtimes take the files of ``/etc/cni/net.d``: the first by name is used
(github.com/containernetworking/cni, libcni.ConfFiles; containerd's and CRI-O's default).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kit.netfilter import Chain, Ruleset
from proto.findings import HOST, Expected, Finding, Fix, Observed, node_name, object_name

KUBE_PROXY, FOREIGN_CHAINS, FOREIGN_CONFIG = "service-kube-proxy", "policy-foreign-plugin", "policy-foreign-config"
CODES = (KUBE_PROXY, FOREIGN_CHAINS, FOREIGN_CONFIG)
PLUGINS = {
    "cali-": "Calico",
    "CILIUM_": "Cilium",
    "KUBE-ROUTER-": "kube-router",
    "KUBE-POD-FW-": "kube-router",
    "KUBE-NWPLCY-": "kube-router",
    "WEAVE-": "Weave Net",
    "ANTREA-": "Antrea",
    "FLANNEL-": "Flannel",
}
"""Prefixes of chains, and whose they are."""
_OF_PROXY = ("KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-")
_CONFIGURATIONS = (".conf", ".conflist", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What is on a node beside this agent."""

    node: str
    ruleset: Ruleset
    virtual_servers: tuple[str, ...] = ()
    """Lines of ``/proc/net/ip_vs`` that name one."""
    processes: tuple[str, ...] = ()
    """Those of kube-proxy in the node's network namespace, as ``kube-proxy (pid 7)``."""
    configurations: tuple[str, ...] = ()
    """Files of the runtime's folder of CNI configurations."""
    own_configuration: str = ""
    """Name of the one that this agent writes."""


def check(host: Host, *, asked: str = "") -> Iterator[Finding]:
    """What others do or left; ``asked``: the Service ``namespace/name`` that somebody asks for."""
    yield from _proxy(host, asked)
    yield from _chains(host)
    yield from _configuration(host)


def _proxy(host: Host, asked: str) -> Iterator[Finding]:
    chains = [
        one
        for one in host.ruleset.chains
        if (one.name.startswith(_OF_PROXY) or (one.table == "kube-proxy" and one.hook)) and one.rules
    ]
    if not (chains or host.virtual_servers or host.processes):
        return
    seen = [
        *(Observed("agent", f"it runs: {name}") for name in host.processes[:4]),
        *((Observed("netfilter", _listed(chains)),) if chains else ()),
        *(
            (Observed("netfilter", f"IPVS: {len(host.virtual_servers)} virtual servers"),)
            if host.virtual_servers
            else ()
        ),
    ]
    state = "runs beside this agent" if host.processes else "has left its rules behind"
    yield Finding(
        code=KUBE_PROXY,
        fault="service",
        about=node_name(host.node),
        node=host.node,
        cause=f"kube-proxy {state}: two programs translate Services here, each with endpoints of its own",
        expected=Expected("Services translated by this agent alone"),
        observed=tuple(seen),
        fixes=(
            *((_no_proxy(),) if host.processes else ()),
            Fix(
                command="kube-proxy --cleanup",
                risk="None for flows that this agent translates; those that began by kube-proxy's rules end.",
            ),
        ),
        affects=(object_name("Service", *asked.split("/", 1)),) if asked else (),
        precedence=HOST,
    )


def _no_proxy() -> Fix:
    return Fix(
        command="kubectl -n kube-system delete daemonset kube-proxy",
        risk="Every node loses kube-proxy: airmesh has to run on all of them.",
        on="cluster",
    )


def _chains(host: Host) -> Iterator[Finding]:
    by_plugin: dict[str, list[Chain]] = {}
    for chain in host.ruleset.chains:
        plugin = next((name for prefix, name in PLUGINS.items() if chain.name.startswith(prefix)), None)
        if plugin is not None and chain.rules:
            by_plugin.setdefault(plugin, []).append(chain)
    for plugin, chains in sorted(by_plugin.items()):
        tables = sorted({(one.family, one.table) for one in chains})
        yield Finding(
            code=FOREIGN_CHAINS,
            fault="policy",
            about=node_name(host.node),
            node=host.node,
            cause=f"rules of {plugin} are in force on the node: they allow and drop packets beside the policies here",
            expected=Expected("no rules of another network plugin"),
            observed=(Observed("netfilter", _listed(chains)),),
            fixes=tuple(
                Fix(
                    command=f"nft -a list table {family} {table}  # take out the jumps there, then the chains",
                    risk=f"Whatever still relies on {plugin} is no longer handled.",
                )
                for family, table in tables
            ),
            precedence=HOST,
        )


def _configuration(host: Host) -> Iterator[Finding]:
    files = sorted(name for name in host.configurations if name.endswith(_CONFIGURATIONS))
    before = [name for name in files if name < host.own_configuration]
    if not before or host.own_configuration not in files:
        return
    yield Finding(
        code=FOREIGN_CONFIG,
        fault="policy",
        about=node_name(host.node),
        node=host.node,
        cause=f"the runtime takes {before[0]}, not {host.own_configuration}: new pods are another plugin's",
        expected=Expected(f"{host.own_configuration} first by name"),
        observed=(Observed("setting", f"CNI configurations: {', '.join(files[:8])}"),),
        fixes=(
            Fix(
                command=f"mv /etc/cni/net.d/{before[0]} /etc/cni/net.d/{before[0]}.disabled",
                risk="The runtime takes the next one at once; pods that run keep what they have.",
            ),
        ),
        precedence=HOST,
    )


def _listed(chains: Iterable[Chain]) -> str:
    """``ip nat KUBE-SVC-X (2 rules) and 30 more chains``."""
    them = sorted(chains, key=lambda one: (one.family, one.table, one.name))
    first = them[0]
    text = f"{first.family} {first.table} {first.name} ({len(first.rules)} rules)"
    return text if len(them) == 1 else f"{text} and {len(them) - 1} more chains"
