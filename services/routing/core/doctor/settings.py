"""Kernel settings that stop packets between nodes: forwarding that is off, and strict reverse path filtering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proto.findings import HOST, Expected, Finding, Observed, node_name, pair_name
from services.routing.core.doctor.fixes import setting

CODES = ("forwarding-off", "reverse-path-filter")
STRICT = 1
"""rp_filter: RFC 3704, 2.2 (ip-sysctl.rst); the larger of `all` and the interface's counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """An interface that packets of other nodes' pods come by."""

    name: str
    forwarding: int
    reverse_path_filter: int
    """The larger of `all` and its own."""
    own_filter: int
    """Its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is judged."""

    node: str
    links: tuple[LinkSettings, ...]
    forwarding6: int
    """net.ipv6.conf.all.forwarding."""
    filtered: int
    """TcpExt IPReversePathFilter: packets that were dropped for it since the namespace began."""
    back: Mapping[str, str]
    """By peer, the interface that the kernel's route back to its address leads out by."""
    arrives: Mapping[str, str]
    """By peer, the interface that its packets come by; a peer that answers by that way has no part in it."""


def check(seen: Settings) -> Iterable[Finding]:
    """Findings of one node's settings."""
    for link in seen.links:
        if not link.forwarding:
            yield _forwarding(seen.node, f"net.ipv4.conf.{link.name}.forwarding", f"what {link.name} receives")
    if not seen.forwarding6:
        yield _forwarding(seen.node, "net.ipv6.conf.all.forwarding", "IPv6")
    for peer, link in filtered(seen).items():
        yield _filter(seen, peer, link, seen.back[peer])


def filtered(seen: Settings) -> Mapping[str, LinkSettings]:
    """Peers whose packets come by an interface that filters strictly, and leave by another; with the first."""
    strict = {link.name: link for link in seen.links if link.reverse_path_filter == STRICT}
    return {
        peer: strict[by]
        for peer, by in sorted(seen.arrives.items())
        if seen.filtered and by in strict and seen.back.get(peer, by) != by
    }


def _forwarding(node: str, name: str, what: str) -> Finding:
    return Finding(
        code="forwarding-off",
        fault="nodes-apart",
        about=node_name(node),
        node=node,
        cause=f"the kernel of {node} does not forward {what}: {name} is 0",
        expected=Expected(text=f"{name} = 1", object=node_name(node)),
        observed=(Observed(where="setting", text=f"{name} = 0"),),
        fixes=(setting(name, 1, 0, "the node forwards packets between its interfaces, as a node of a cluster must"),),
        precedence=HOST,
    )


def _filter(seen: Settings, peer: str, link: LinkSettings, back: str) -> Finding:
    name = f"net.ipv4.conf.{link.name}.rp_filter"
    return Finding(
        code="reverse-path-filter",
        fault="nodes-apart",
        about=pair_name(seen.node, peer),
        node=seen.node,
        cause=f"{seen.node} drops what {peer} sends by {link.name}: its way back is {back}, and rp_filter is strict",
        expected=Expected(text=f"{name} = 2, or a route to {peer} by {link.name}", object=node_name(peer)),
        observed=(
            Observed(where="setting", text=f"rp_filter of {link.name} = {STRICT}"),
            Observed(where="route", text=f"packets to {peer} leave by {back}"),
            Observed(where="counter", text=f"TcpExt IPReversePathFilter = {seen.filtered}"),
        ),
        fixes=(setting(name, 2, link.own_filter, "a spoofed source that has a route by another interface is let in"),),
        precedence=HOST,
    )
