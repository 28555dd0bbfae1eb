"""The other ends of tunnels: ``am_tunnel_peers`` and ``am_tunnel_srcs`` as they should be, kept by what changes.

A packet in a tunnel is taken when its outer source is a node's (``kit.underlay`` says whose it is), and its inner
source is that node's own: an address of its blocks, one that is kept and held there now, or one that the node has
itself. API servers, which need not be nodes, may send in their own names, by the API's word. That often names one
family alone: of the other family such a machine has what it announces, as long as nobody else has it. How packets to
a node's address go follows from the kernel's routes to its pods alone: by the same device, so that answers of pods to
nodes take the way that pods' packets take.

Promises: depends on the present state, not on the order in which it came; a change costs what it is about. What stays
known while a bucket is not whole is for the shell to say (``tunnel/known.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from ipaddress import ip_network

from kit.tunnels import next_hop, vtep_mac
from kit.underlay import MOST_ADDRESSES, NOBODY, Refusal, Underlay, within
from proto.addresses import Block, Claim
from proto.net import Address, Network
from services.dataplane.core.datapath.layout import AddressKey, PrefixKey
from services.dataplane.core.datapath.tunnel_layout import TunnelKind, TunnelPeer, TunnelSource
from services.dataplane.core.tunnel.devices import Device
from services.dataplane.core.tunnel.numbers import Numbers
from services.dataplane.core.tunnel.routes import RouteKey, SeenRoute

SERVER = "_apiserver."
"""Beginning of the name under which an API server's address has a number; no node can be called so."""


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
        self._servers: Set[Address] = frozenset()
        self._own: Set[Address] = frozenset()
        self._devices: dict[int, Device] = {}
        self._routes: dict[Address, dict[RouteKey, int]] = {}
        """Devices of the routes by their next hop."""
        self._via: dict[RouteKey, Address] = {}
        self._led: Counter[tuple[int, int]] = Counter()
        """Routes by family and device."""
        self._gateways: dict[str, tuple[frozenset[Address], frozenset[str]]] = {}
        """What machines that are no nodes announce: their addresses, and the models that they receive by."""
        self._nodes: Set[str] = frozenset()
        self._of_nodes: Set[Address] = frozenset()
        """Addresses that the API gives to nodes, whether they have announced them or not."""
        self._outer: dict[Address, Address] = {}
        """What a next hop stands for: of all addresses that have an owner."""
        self._owners: dict[Address, str] = {}
        """Whose an address is: nodes' and API servers'."""
        self._of: dict[str, set[Address]] = {}
        """The same by owner."""
        self._served: set[Address] = set()
        """Addresses of API servers that counted when they were looked at last."""
        self._dirty_nodes: set[str] = set()
        self._dirty_hops: set[Address] = set()
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
        return 0 if node in NOBODY else self._numbers.of(node)

    def announce(self, node: str, addresses: Iterable[Address]) -> None:
        """What a node tells of itself in ``routes``; nothing: it tells nothing (any more)."""
        self._underlay.announce(node, addresses)

    def set_gateway(self, name: str, addresses: Iterable[Address], models: Iterable[str]) -> None:
        """What a machine that is no node announces, of which the first :data:`MOST_ADDRESSES` count; nothing: it
        announces nothing (any more).
        """
        self._gateways.pop(name, None)
        if addresses := sorted(addresses, key=_order)[:MOST_ADDRESSES]:
            self._gateways[name] = frozenset(addresses), frozenset(models)

    def set_block(self, cidr: Network, block: Block | None) -> None:
        """The block of a network; None: there is none."""
        self._underlay.set_block(cidr, block)
        self._dirty_sources.add(cidr)
        self._dirty_sources.update(ip_network(address) for address in within(cidr, self._underlay.holdings.claims))

    def set_claim(self, address: Address, claim: Claim | None) -> None:
        """The claim on an address; None: there is none."""
        self._underlay.set_claim(address, claim)
        self._dirty_sources.add(ip_network(address))

    def set_api(self, nodes: Mapping[str, frozenset[Address]], servers: Set[Address]) -> None:
        """What the API says: each Node's addresses, and those of its own servers."""
        self._underlay.set_api(nodes, servers)
        self._servers, self._nodes = servers, frozenset(nodes)
        self._of_nodes = frozenset[Address]().union(*nodes.values())

    def set_own(self, addresses: Set[Address]) -> None:
        """Addresses of this node's own interfaces."""
        self._underlay.set_own(addresses)
        self._own = addresses

    def set_devices(self, devices: Iterable[Device]) -> None:
        """The tunnel devices that there are."""
        now = {one.index: one for one in devices}
        if now != self._devices:
            self._devices = now
            self._dirty_hops |= self._routes.keys()

    def set_route(self, key: RouteKey, route: SeenRoute | None) -> None:
        """A route of ``routing``; None: there is none."""
        before = self._via.pop(key, None)
        if before is not None:
            keys = self._routes[before]
            self._count(key, keys.pop(key), -1)
            if not keys:
                del self._routes[before]
            self._dirty_hops.add(before)
        if route is not None and route.via is not None:
            self._via[key] = route.via
            self._routes.setdefault(route.via, {})[key] = route.link
            self._count(key, route.link, 1)
            self._dirty_hops.add(route.via)

    def settle(self) -> Changed:
        """Brings both maps up to date."""
        moved = self._follow_owners()
        for hop in self._dirty_hops:
            outer = self._outer.get(hop)
            if outer is not None:
                self._dirty_nodes.add(self._owners[outer])
        addresses = moved.union(self._served, *(self._of.get(name, ()) for name in self._dirty_nodes))
        self._dirty_hops.clear()
        self._dirty_nodes.clear()
        peers = {key for one in addresses for key, entry in self._entries(one) if self._put(key, entry)}
        self._dirty_sources.update(ip_network(address) for address in moved)
        sources = {PrefixKey.of(one) for one in self._dirty_sources if self._settle_source(one)}
        self._dirty_sources.clear()
        return Changed(peers, sources)

    def forget(self) -> None:
        """Numbers of nodes that nothing names any more."""
        self._numbers.keep({*self.holders, *self._of})

    def _follow_owners(self) -> set[Address]:
        """Addresses that have another owner than before."""
        changed = self._underlay.settle()
        servers = self._named_servers()
        moved = set()
        for address in changed | servers.keys() | self._served:
            before = self._owners.pop(address, None)
            now = self._underlay.owners.get(address) or servers.get(address)
            for hop in _hops(address):
                self._outer.pop(hop, None)
                if now is not None:
                    self._outer[hop] = address
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

    def _named_servers(self) -> dict[Address, str]:
        """API servers' addresses, and the name under which one has its number: of a machine all have the same."""
        servers = {address: f"{SERVER}{address}" for address in self._servers if self._is_servers(address)}
        for name, (addresses, _) in sorted(self._gateways.items()):
            vouched = [address for address in addresses if address in servers]
            if vouched and not self._is_node(name):
                first, named = servers[min(vouched, key=_order)], {one.version for one in vouched}
                besides = (one for one in addresses if one.version not in named and self._may_be_servers(one))
                servers |= dict.fromkeys((*vouched, *besides), first)
        return servers

    def _is_node(self, name: str) -> bool:
        """Whether one that says that it is none is a node."""
        return name in self._nodes or self._underlay.holds(name)

    def _may_be_servers(self, address: Address) -> bool:
        """As :meth:`_is_servers`, of an address that the API does not name."""
        return address not in self._of_nodes and self._is_servers(address)

    def _is_servers(self, address: Address) -> bool:
        """Whether an API server's address is that, and no node's or pod's."""
        holdings = self._underlay.holdings
        taken = address in self._own or address in holdings.claims or address in self._underlay.owners
        return not taken and holdings.block_of(address) is None

    def _entries(self, address: Address) -> Iterator[tuple[AddressKey, TunnelPeer | None]]:
        """What the map has at an address, and at the next hop that stands for it where it cannot be read from that."""
        name, mac = self._owners.get(address), vtep_mac(address)
        if name is None:
            outer, link = None, 0
        elif name.startswith(SERVER):
            outer, link = self._way_to_server(address, self._of[name])
        else:
            outer, link = self._way(address.version, self._of[name])
        number = 0 if name is None else self.number_of(name)
        entry = TunnelPeer(node=number, ifindex=link, outer=outer, mac=mac)
        yield AddressKey(address=address), None if name is None else entry
        if address.version == 6:
            links = [self._way(family, (address,))[1] for family in (4, 6)]
            entry = TunnelPeer(node=number, ifindex=max(links), outer=address, mac=mac)
            yield AddressKey(address=next_hop(address, 6)), None if name is None else entry

    def _put(self, key: AddressKey, entry: TunnelPeer | None) -> bool:
        """Whether the entry is another than before."""
        if self.peers.get(key) == entry:
            return False
        if entry is None:
            del self.peers[key]
        else:
            self.peers[key] = entry
        return True

    def _way(self, family: int, outers: Iterable[Address]) -> tuple[Address | None, int]:
        """Of a node's addresses the outer one, and the device, that packets of a family take to its pods; (None, 0): as
        they are.

        Where pools have them take several, the one that hides most, so that nothing is told twice in different ways.
        """
        ways = [
            (int(device.kind), link, int(outer), outer)
            for outer in outers
            for (destination, _), link in self._routes.get(next_hop(outer, family), {}).items()
            if destination.version == family and (device := self._devices.get(link)) is not None
        ]
        if not ways:
            return None, 0
        _, link, _, outer = max(ways, key=lambda way: way[:3])
        return outer, link

    def _way_to_server(self, address: Address, outers: Iterable[Address]) -> tuple[Address | None, int]:
        """The same for an API server, behind which there are no pods: by the device that most routes lead out by, of
        those whose models the server's machine receives by, and by WireGuard before any other. A node is no such
        machine, whatever it announces. ``outers``: all addresses of the machine.
        """
        models: set[str] = set()
        for name, (addresses, received) in self._gateways.items():
            if address in addresses and not self._is_node(name):
                models |= received
        ways = [
            (device.kind is TunnelKind.WIREGUARD, count, link, outer == address, int(outer), outer)
            for (family, link), count in self._led.items()
            if family == address.version and (device := self._devices.get(link)) is not None
            if device.tunnel.model in models
            for outer in ((address,) if device.kind is TunnelKind.WIREGUARD else outers)
            if device.kind is TunnelKind.WIREGUARD or device.tunnel.local.version == outer.version
        ]
        if not ways:
            return None, 0
        _, _, link, *_, outer = max(ways, key=lambda way: way[:5])
        return outer, link

    def _count(self, key: RouteKey, link: int, change: int) -> None:
        which = key[0].version, link
        self._led[which] += change
        if not self._led[which]:
            del self._led[which]

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
        holdings = self._underlay.holdings
        if network.prefixlen == network.max_prefixlen:
            address = network.network_address
            claim, block = holdings.claims.get(address), holdings.block_of(address)
            if claim is not None and claim.node and (block is None or block.node != claim.node):
                return self.number_of(claim.node)
            if (name := self._owners.get(address)) is not None:
                return self.number_of(name)
        held = holdings.block_at(network)
        return None if held is None else self.number_of(held.node)


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _hops(outer: Address) -> tuple[Address, ...]:
    """Next hops that stand for an outer address."""
    return tuple({next_hop(outer, family) for family in (4, 6)})
