"""The other ends of tunnels: ``am_tunnel_peers`` and ``am_tunnel_srcs`` as they should be, kept by what changes.

A packet in a tunnel is taken when its outer source is a node's (``kit.underlay`` says whose it is), and its inner
source is that node's own: an address of its blocks, one that is kept and held there now, or one that the node has
itself. API servers, which need not be nodes, may send in their own names. How packets to a node's address go follows
from the kernel's routes to its pods alone: by the same device, so that answers of pods to nodes take the way that
pods' packets take.

Promises: depends on the present state, not on the order in which it came; a change costs what it is about. What stays
known while a bucket is not whole is for the shell to say (``tunnel/known.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from ipaddress import ip_network

from kit.tunnels import outer_address, vtep_mac
from kit.underlay import Refusal, Underlay, within
from proto.addresses import CONTESTED, IPAM_HOLDER, Block, Claim
from proto.net import Address, Network
from services.dataplane.core.datapath.layout import AddressKey, PrefixKey
from services.dataplane.core.datapath.tunnel_layout import TunnelPeer, TunnelSource
from services.dataplane.core.tunnel.devices import Device
from services.dataplane.core.tunnel.numbers import Numbers
from services.dataplane.core.tunnel.routes import RouteKey, SeenRoute

SERVER = "_apiserver."
"""Beginning of the name under which an API server's address has a number; no node can be called so."""
_NOBODY = ("", IPAM_HOLDER, CONTESTED)


@dataclass(frozen=True, slots=True)
class Changed:
    """Keys whose entry is another than before, or none."""

    peers: Set[AddressKey]
    sources: Set[PrefixKey]


class TunnelPeers:
    """See the module."""

    def __init__(self, me: str = "") -> None:
        """``me``: this node; empty for a machine that is none."""
        self._underlay = Underlay(me)
        self._numbers = Numbers()
        self._blocks: dict[Network, Block] = {}
        self._claims: dict[Address, Claim] = {}
        self._servers: Set[Address] = frozenset()
        self._own: Set[Address] = frozenset()
        self._devices: dict[int, Device] = {}
        self._routes: dict[Address, dict[RouteKey, int]] = {}
        """Devices of the routes by the outer address that they lead to."""
        self._outer: dict[RouteKey, Address] = {}
        self._owners: dict[Address, str] = {}
        """Whose an address is: nodes' and API servers'."""
        self._of: dict[str, set[Address]] = {}
        """The same by owner."""
        self._served: set[Address] = set()
        """Addresses of API servers that counted when they were looked at last."""
        self._dirty_nodes: set[str] = set()
        self._dirty_outer: set[Address] = set()
        self._dirty_sources: set[Network] = set()
        self.peers: dict[AddressKey, TunnelPeer] = {}
        """Entries of ``am_tunnel_peers``."""
        self.sources: dict[PrefixKey, TunnelSource] = {}
        """Entries of ``am_tunnel_srcs``."""

    @property
    def refusals(self) -> Iterable[Refusal]:
        """Addresses that nodes tell and do not have."""
        return self._underlay.refusals.values()

    @property
    def holders(self) -> Iterable[str]:
        """Nodes that hold a block or a claim."""
        return self._underlay.holders

    def holds(self, node: str) -> bool:
        """Whether a node does."""
        return self._underlay.holds(node)

    def number_of(self, node: str) -> int:
        """A node's number in the maps, 0 for nobody."""
        return 0 if node in _NOBODY else self._numbers.of(node)

    def announce(self, node: str, addresses: Iterable[Address]) -> None:
        """What a node tells of itself in ``routes``; nothing: it tells nothing (any more)."""
        self._underlay.announce(node, addresses)

    def set_block(self, cidr: Network, block: Block | None) -> None:
        """The block of a network; None: there is none."""
        self._underlay.set_block(cidr, block)
        if block is None:
            self._blocks.pop(cidr, None)
        else:
            self._blocks[cidr] = block
        self._dirty_sources.add(cidr)
        self._dirty_sources.update(ip_network(address) for address in within(cidr, self._claims))

    def set_claim(self, address: Address, claim: Claim | None) -> None:
        """The claim on an address; None: there is none."""
        self._underlay.set_claim(address, claim)
        if claim is None:
            self._claims.pop(address, None)
        else:
            self._claims[address] = claim
        self._dirty_sources.add(ip_network(address))

    def set_api(self, nodes: Mapping[str, frozenset[Address]], servers: Set[Address]) -> None:
        """What the API says: each Node's addresses, and those of its own servers."""
        self._underlay.set_api(nodes, servers)
        self._servers = servers

    def set_own(self, addresses: Set[Address]) -> None:
        """Addresses of this node's own interfaces."""
        self._underlay.set_own(addresses)
        self._own = addresses

    def set_devices(self, devices: Iterable[Device]) -> None:
        """The tunnel devices that there are."""
        now = {one.index: one for one in devices}
        if now != self._devices:
            self._devices = now
            self._dirty_outer |= self._routes.keys()

    def set_route(self, key: RouteKey, route: SeenRoute | None) -> None:
        """A route of ``routing``; None: there is none."""
        outer = None if route is None or route.via is None else outer_address(route.via)
        before = self._outer.pop(key, None)
        if before is not None:
            keys = self._routes[before]
            del keys[key]
            if not keys:
                del self._routes[before]
            self._dirty_outer.add(before)
        if outer is not None and route is not None:
            self._outer[key] = outer
            self._routes.setdefault(outer, {})[key] = route.link
            self._dirty_outer.add(outer)

    def settle(self) -> Changed:
        """Brings both maps up to date."""
        moved = self._follow_owners()
        for outer in self._dirty_outer:
            if (name := self._owners.get(outer)) is not None:
                self._dirty_nodes.add(name)
        addresses = moved.union(*(self._of.get(name, ()) for name in self._dirty_nodes))
        self._dirty_outer.clear()
        self._dirty_nodes.clear()
        peers = {AddressKey(address=one) for one in addresses if self._settle_peer(one)}
        self._dirty_sources.update(ip_network(address) for address in moved)
        sources = {PrefixKey.of(one) for one in self._dirty_sources if self._settle_source(one)}
        self._dirty_sources.clear()
        return Changed(peers, sources)

    def forget(self) -> None:
        """Numbers of nodes that nothing names any more."""
        named = {block.node for block in self._blocks.values()} | {claim.node for claim in self._claims.values()}
        self._numbers.keep(named | self._of.keys())

    def _follow_owners(self) -> set[Address]:
        """Addresses that have another owner than before."""
        changed = self._underlay.settle()
        servers = {address: f"{SERVER}{address}" for address in self._servers if self._is_servers(address)}
        moved = set()
        for address in changed | servers.keys() | self._served:
            before = self._owners.pop(address, None)
            now = self._underlay.owners.get(address) or servers.get(address)
            if now is not None:
                self._owners[address] = now
            if before == now:
                continue
            moved.add(address)
            if before is not None:
                self._of[before].discard(address)
                if not self._of[before]:
                    del self._of[before]
            if now is not None:
                self._of.setdefault(now, set()).add(address)
            self._dirty_nodes.update(name for name in (before, now) if name is not None)
        self._served = set(servers)
        return moved

    def _is_servers(self, address: Address) -> bool:
        """Whether an API server's address is that, and no node's or pod's."""
        taken = address in self._own or address in self._claims or address in self._underlay.owners
        return not taken and self._underlay.holdings.block_of(address) is None

    def _settle_peer(self, address: Address) -> bool:
        """Whether its entry is another now."""
        key, name = AddressKey(address=address), self._owners.get(address)
        if name is None:
            return self.peers.pop(key, None) is not None
        outer, link = self._way(address.version, name)
        entry = TunnelPeer(node=self.number_of(name), ifindex=link, outer=outer, mac=vtep_mac(address))
        if self.peers.get(key) == entry:
            return False
        self.peers[key] = entry
        return True

    def _way(self, family: int, name: str) -> tuple[Address | None, int]:
        """Outer address and device that packets of a family take to a node's pods; (None, 0): as they are.

        Where pools have them take several, the one that hides most, so that nothing is told twice in different ways.
        """
        ways = [
            (int(device.kind), link, int(outer), outer)
            for outer in self._of[name]
            for (destination, _), link in self._routes.get(outer, {}).items()
            if destination.version == family and (device := self._devices.get(link)) is not None
        ]
        if not ways:
            return None, 0
        _, link, _, outer = max(ways, key=lambda way: way[:3])
        return outer, link

    def _settle_source(self, network: Network) -> bool:
        """Whether its entry is another now."""
        key, number = PrefixKey.of(network), self._source(network)
        if number is None:
            return self.sources.pop(key, None) is not None
        entry = TunnelSource(node=number)
        if self.sources.get(key) == entry:
            return False
        self.sources[key] = entry
        return True

    def _source(self, network: Network) -> int | None:
        """Number of the node that may send with sources of a prefix; 0 for nobody, None where the prefix says nothing
        of its own.
        """
        if network.prefixlen == network.max_prefixlen:
            address = network.network_address
            claim, block = self._claims.get(address), self._underlay.holdings.block_of(address)
            if claim is not None and claim.node and (block is None or block.node != claim.node):
                return self.number_of(claim.node)
            if (name := self._owners.get(address)) is not None:
                return self.number_of(name)
        held = self._blocks.get(network)
        return None if held is None else self.number_of(held.node)
