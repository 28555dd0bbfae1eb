"""All tables of a node's datapath by name: what the agent fills and reads.

Owns the descriptors of the pinned maps (``datapath.pins`` opens them); one of another shape refuses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Any

from linux import bpf
from proto.flow import DropReason
from proto.policy import Direction
from services.dataplane.core.conntrack.state import budget_of, node_budget
from services.dataplane.core.datapath import dns_layout as dns
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import maps as m
from services.dataplane.core.datapath import nat_layout as nat
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath import tunnel_layout as tl
from services.dataplane.core.datapath.maps import MapSpec, recent_sets
from services.dataplane.core.datapath.wire import Address
from services.dataplane.datapath.maps import Table

_FIRST = at.Index(index=0)


def create(spec: MapSpec, entries: int) -> int:
    """A new map's descriptor, not pinned. Raises BpfError, ENOMEM when the node has no memory for it."""
    return bpf.map_create(spec.kind, spec.key_size, spec.value_size, entries, flags=spec.flags, name=spec.name)


class Tables:
    """The maps of one node. Attribute names say what they hold; ``core.datapath.maps`` says what for."""

    def __init__(self, descriptors: dict[str, int]) -> None:
        fd = descriptors
        self.descriptors = descriptors
        self.links = Table(fd["am_links"], m.LINKS, at.LinkKey, at.Link)
        self.uplinks = Table(fd["am_uplinks"], m.UPLINKS, at.LinkKey, at.Uplink)
        self.endpoints = Table(fd["am_endpoints"], m.ENDPOINTS, at.AddressKey, at.Endpoint)
        self.ipcache = Table(fd["am_ipcache"], m.IPCACHE, at.PrefixKey, at.Peer)
        self.cidrs = Table(fd["am_cidrs"], m.CIDRS, pl.CidrKey, pl.CidrNumber)
        self.subjects = Table(fd["am_subjects"], m.SUBJECTS, pl.SubjectKey, pl.Subject)
        self.selected = Table(fd["am_selected"], m.SELECTED, pl.IdentityKey, pl.SelectorSet)
        self.scope_peers = Table(fd["am_scope_peer"], m.SCOPE_PEERS, pl.ScopePeerKey, pl.ScopeBits)
        self.scope_ports = Table(fd["am_scope_port"], m.SCOPE_PORTS, pl.ScopePortKey, pl.ScopeBits)
        self.scope_rules = Table(fd["am_scope_rule"], m.SCOPE_RULES, pl.ScopeRuleKey, pl.ScopeRule)
        self.flows = Table(fd["am_ct"], m.FLOWS, at.FlowKey, at.Flow)
        self.budgets = Table(fd["am_ct_budget"], m.BUDGETS, at.EndpointKey, at.Budget)
        self.fragments = Table(fd["am_frags"], m.FRAGMENTS, at.FragmentKey, at.Fragment)
        self.services = Table(fd["am_services"], m.SERVICES, lb.ServiceKey, lb.Service)
        self.backends = Table(fd["am_backends"], m.BACKENDS, lb.BackendKey, lb.Backend)
        self.members = Table(fd["am_members"], m.MEMBERS, lb.MemberKey, lb.Member)
        self.source_ranges = Table(fd["am_src_ranges"], m.SOURCE_RANGES, lb.SourceRangeKey, lb.SourceRange)
        self.affinities = Table(fd["am_affinity"], m.AFFINITIES, lb.AffinityKey, lb.Affinity)
        self.slots = Table(fd["am_slots"], m.SLOTTED, at.Index, lb.Slot)
        self.sent = Table(fd["am_sent"], m.SENT, at.Index, lb.Sent)
        self.reverses = Table(fd["am_reverse"], m.REVERSES, lb.ReverseKey, lb.Virtual)
        self.cookies = Table(fd["am_cookies"], m.COOKIES, at.CookieKey, at.CookieMark)
        self.nats = Table(fd["am_nat"], m.NATS, nat.NatKey, nat.Nat)
        self.clients = Table(fd["am_clients"], m.CLIENTS, nat.ClientKey, lb.Affinity)
        self.tunnels = Table(fd["am_tunnels"], m.TUNNELS, at.LinkKey, tl.Tunnel)
        self.tunnel_ends = Table(fd["am_tunnel_ends"], m.TUNNEL_ENDS, tl.TunnelEndKey, tl.TunnelEnd)
        self.tunnel_peers = Table(fd["am_tunnel_peers"], m.TUNNEL_PEERS, at.AddressKey, tl.TunnelPeer)
        self.tunnel_sources = Table(fd["am_tunnel_srcs"], m.TUNNEL_SOURCES, at.PrefixKey, tl.TunnelSource)
        self.dns_pods = Table(fd["am_dns"], m.DNS_PODS, at.EndpointKey, dns.DnsPod)
        self._own = Table(fd["am_own"], m.NODE_ADDRESSES, at.Index, nat.NodeAddresses)
        self._choice = Table(fd["am_choice"], m.CHOICE, at.Index, lb.ChoiceKey)
        self._config = Table(fd["am_config"], m.CONFIG, at.Index, at.Config)
        self._generation = Table(fd["am_generation"], m.GENERATION, at.Index, at.Generation)
        self.recent = Table(fd["am_ct_recent"], m.RECENT, at.Index, at.Recent)
        self.nat_recent = Table(fd["am_nat_recent"], m.NAT_RECENT, at.Index, at.Recent)
        self.peers = Table(fd["am_ct_peers"], m.PEERS, at.Index, at.Held)
        self.events_fd = fd["am_events"]

    @property
    def by_name(self) -> dict[str, Table[Any, Any]]:
        """Every table by its map's name."""
        return {one.spec.name: one for one in vars(self).values() if isinstance(one, Table)}

    def configure(self, config: at.Config) -> None:
        """Sets the switches; they hold from the next packet on."""
        self._config.put(_FIRST, config)

    @property
    def config(self) -> at.Config:
        """The switches now (all zero in a fresh map: no events at all)."""
        return self._config.get(_FIRST) or at.Config(events_per_second=0, events_burst=0)

    def speak_as(self, addresses: Iterable[Address]) -> None:
        """Says the node's own addresses, preferred ones first: the first of each family is what backends elsewhere see
        of clients that asked for an address which is not the node's. Flows that live keep theirs.
        """
        first = {address.version: address for address in reversed(list(addresses))}
        wanted = nat.NodeAddresses(address4=first.get(4), address6=first.get(6))
        if self._own.get(_FIRST) != wanted:
            self._own.put(_FIRST, wanted)

    def choose_by(self, key: lb.ChoiceKey) -> None:
        """Says by which key flows from outside choose their backends. Flows that live keep theirs."""
        if self._choice.get(_FIRST) != key:
            self._choice.put(_FIRST, key)

    @property
    def generation(self) -> int:
        """The policy generation that flows are judged under now."""
        entry = self._generation.get(_FIRST)
        return entry.number if entry else 0

    def bump_generation(self) -> int:
        """Makes every live flow be judged again at its next packet: call it after any change to links' identities,
        ``ipcache``, ``cidrs``, ``subjects`` or the scopes. Returns the new number.
        """
        number = (self.generation + 1) & 0xFFFFFFFF
        self._generation.put(_FIRST, at.Generation(number=number))
        return number

    def asked_for(self, socket: int, address: Address, port: int) -> lb.Virtual | None:
        """The virtual address that a socket (its cookie) had asked for when the programs sent it to this backend; None
        when they did not, or have forgotten.
        """
        index = at.Index(index=socket % m.SLOTS)
        sent, slot = self.sent.get(index), self.slots.get(index)  # in this order: what its owner still has was its own
        if sent and slot and slot.socket == socket and (sent.address, sent.port) == (address, port):
            return lb.Virtual(address=sent.virtual, port=sent.virtual_port)
        return self.reverses.get(lb.ReverseKey(socket=socket, address=address, port=port))

    def set_budget(self, endpoint: int, limit: int) -> None:
        """How many flows an endpoint that is new here may have in each direction. One that has a budget keeps it as it
        is, counts and all: :meth:`FlowCollector.limit` changes it where packets count.
        """
        key = at.EndpointKey(endpoint=endpoint)
        if self.budgets.get(key) is None:
            self.budgets.put(key, budget_of(endpoint, limit, recent_sets(self.flows.entries)))

    def watch_table(self) -> None:
        """Has the datapath count the node's flows, so that it knows when the table is nearly full."""
        key = at.EndpointKey(endpoint=at.NODE)
        if self.budgets.get(key) is None:
            self.budgets.put(key, node_budget(self.flows.entries))

    def metrics(self) -> dict[tuple[DropReason, Direction], at.Metric]:
        """Packets and bytes by reason and direction since the maps were made, over all processors."""
        totals: dict[tuple[DropReason, Direction], at.Metric] = {}
        for reason in DropReason:
            for direction in Direction:
                key = at.Index(index=reason * 2 + direction).pack()
                raw = bpf.lookup_per_cpu(self.descriptors["am_metrics"], key, m.METRICS.value_size) or b""
                values = struct.unpack(f"<{len(raw) // 8}Q", raw)
                if any(values):
                    totals[reason, direction] = at.Metric(packets=sum(values[::2]), bytes=sum(values[1::2]))
        return totals

    def close(self) -> None:
        """Lets go of all descriptors; the pins keep the maps."""
        for fd in self.descriptors.values():
            os.close(fd)
