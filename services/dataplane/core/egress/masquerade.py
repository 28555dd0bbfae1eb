"""The nftables rules that masquerade pods' traffic to addresses outside of the cluster: values in, text out.

Owns the table ``inet airmesh``. What comes from a pool with natOutgoing and leaves the cluster (its destination is in
no pool and is no node) gets the node's address: the uplink's, or the node's own where that is on none of them; nothing
else is touched, so pods see each other's own addresses, and whoever speaks to a pod from outside is answered by that
pod's address (replies carry the datapath's mark). The whole table is replaced in one transaction. Refuses nothing; a
family without such a pool has no rule.

``disabled`` makes no difference, here as in Calico: it stops new addresses, and nothing else. Pods that have addresses
of the pool live on, so it stays inside the cluster for the others and, with natOutgoing, a source to masquerade, or
disabling a pool would cut its pods off from the world. A disabled pool is also how one names a network that pods reach
by their own addresses. Source: nft(8); Calico's natOutgoing and disabled
(https://docs.tigera.io/calico/latest/networking/configuring/workloads-outside-cluster).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from proto.net import Address, Network
from proto.objects import IPPool
from services.dataplane.core.datapath.layout import REPLY_MARK

TABLE = "airmesh"


def ruleset(pools: Iterable[IPPool], nodes: Iterable[Address], own: Iterable[Address] = ()) -> str:
    """Input for ``nft -f -`` that makes the table what it should be, whatever it was. ``own``: addresses of this node
    that are on no uplink; the first of a family is what is masqueraded as, where the kernel would take the uplink's.
    """
    known, first = list(pools), {address.version: address for address in reversed(list(own))}
    addresses = list(nodes)
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    rules = []
    for version, word, element in ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr")):
        inside = _merged(pool.cidr for pool in known if pool.cidr.version == version)
        leaving = _merged(pool.cidr for pool in known if pool.cidr.version == version and pool.nat_outgoing)
        if not leaving:
            continue
        others = sorted(str(address) for address in addresses if address.version == version)
        lines += _set(f"masqueraded{version}", element, leaving)
        lines += _set(f"cluster{version}", element, [*inside, *others])
        becomes = f"snat {word} to {first[version]}" if version in first else "masquerade"
        rules.append(f"{word} saddr @masqueraded{version} {word} daddr != @cluster{version} {becomes}")
    lines += ["  chain postrouting {", "    type nat hook postrouting priority srcnat; policy accept;"]
    if rules:
        lines.append(f"    meta mark {REPLY_MARK:#010x} accept")
    lines += [f"    {rule}" for rule in rules]
    return "\n".join([*lines, "  }", "}", ""])


def _set(name: str, element: str, members: list[str]) -> list[str]:
    listed = ", ".join(members)
    return [
        f"  set {name} {{",
        f"    type {element}; flags interval; auto-merge;",
        f"    elements = {{ {listed} }}",
        "  }",
    ]


def _merged(networks: Iterable[Network]) -> list[str]:
    four: list[IPv4Network] = []
    six: list[IPv6Network] = []
    for network in networks:
        (four if isinstance(network, IPv4Network) else six).append(network)  # type: ignore[arg-type]
    return [str(network) for network in (*collapse_addresses(four), *collapse_addresses(six))]
