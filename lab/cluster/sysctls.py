"""Kernel settings (ip-sysctl.rst) of a lab's network namespaces, by the kind of machine that each stands for.

Pure. All are under /proc/sys/net and are to be written before links exist: `default` is what new links start with.
"""

from lab.topology import Topology


def host_settings() -> dict[str, str]:
    """Settings of a node or the control plane.

    Forwarding comes first: writing it resets other settings of the same family.
    Addresses are set by hand, so router advertisements and duplicate detection are off.
    """
    return {
        "ipv4/ip_forward": "1",
        "ipv6/conf/all/forwarding": "1",
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        "ipv6/conf/all/accept_dad": "0",
        "ipv6/conf/default/accept_dad": "0",
        "ipv6/conf/all/accept_ra": "0",
        "ipv6/conf/default/accept_ra": "0",
    }


def outside_settings() -> dict[str, str]:
    """Settings of the fabric's namespace: an outside host, not a router. Where it has several ways to an address (see
    `cloud.py`), each connection takes one of them.
    """
    return {
        "ipv4/fib_multipath_hash_policy": "1",
        "ipv6/fib_multipath_hash_policy": "1",
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        "ipv6/conf/all/accept_dad": "0",
        "ipv6/conf/default/accept_dad": "0",
    }


def router_settings() -> dict[str, str]:
    """Settings of the router's namespace: it forwards, and never tells a host of a shorter way past it."""
    return {
        **host_settings(),
        "ipv4/conf/all/send_redirects": "0",
        "ipv4/conf/default/send_redirects": "0",
    }


def uplink_settings() -> dict[str, str]:
    """Further settings of a host behind switches: ports count in the spread of flows, and no carrier means no path."""
    links = ("ipv4/conf/all", "ipv4/conf/default", "ipv6/conf/all", "ipv6/conf/default")
    return {
        "ipv4/fib_multipath_hash_policy": "1",
        "ipv6/fib_multipath_hash_policy": "1",
        **{f"{link}/ignore_routes_with_linkdown": "1" for link in links},
    }


def switch_settings() -> dict[str, str]:
    """Settings of a switch's namespace. A port that goes down and comes up again has its addresses still."""
    return {
        **router_settings(),
        **uplink_settings(),
        "ipv6/conf/all/keep_addr_on_down": "1",
        "ipv6/conf/default/keep_addr_on_down": "1",
    }


def settings_of(topology: Topology) -> dict[str, dict[str, str]]:
    """Settings of every namespace."""
    more = uplink_settings() if topology.switches else {}
    found = {topology.fabric_namespace: {**outside_settings(), **more}}
    if topology.router_namespace:
        found[topology.router_namespace] = router_settings()
    found |= {switch.namespace: switch_settings() for switch in topology.switches}
    return found | {host.namespace: {**host_settings(), **more} for host in topology.hosts}
