"""From API objects to the BGP speaker of one node: its number and addresses, its peers, and what cannot be honoured.

Pure, and made of the present objects alone: whatever the order in which they came, the same speaker follows. A node
speaks BGP when a BGPConfiguration ``default`` or a BGPPeer is there; without any nobody asks for it. Then, as with
Calico:

- *Node mesh*, unless it is off: every node that is no route reflector peers with every other such node, by one session
  for each family that both have an address of.
- *BGPPeer*: the nodes that ``node`` or ``nodeSelector`` names (all, if none does) peer with ``peerIP``, or with the
  nodes of ``peerSelector``. Those hold their side of it by themselves unless ``reversePeering`` says otherwise.
- Of several that name one address the one for a certain node counts, then one with a selector, then the first by name;
  the others are reported. Any of them comes before the mesh.
- Between two nodes the one with the greater address connects, so that there is one connection and none to decide about.
- A route reflector's internal peers are its clients unless they have its cluster id (RFC 4456).

A session whose password is not there is not held: never without, where one is asked for. What a node that is cordoned
or about to be deleted sends leads through it only where nothing else does (RFC 8326).

Source: Calico's BGPPeer and BGPConfiguration references, and its BIRD templates (confd).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import IPv4Address

from kit.bgp import PORT
from kit.model_settings import DEFAULT, NODE
from kit.node_selectors import parse_selector
from proto.bgp import PeerKind
from proto.net import Address, Network
from proto.objects import BGPConfiguration, BGPFilter, BGPPeer, IPPool, Node, SecretKey
from services.routing.core.bgp.configuration import RESTART, configuration
from services.routing.core.bgp.peers import Peer, SessionSettings, TableSettings
from services.routing.core.bgp.route_policies import Ranges, Rules, passed_over, policies
from services.routing.core.bgp.values import AddPath, Asn, Family, RouterId
from services.routing.core.faults import Fault

MOST_PREFIXES = 1_000_000
"""Of each family from one peer: the table of the Internet has fewer."""
MOST_PASSWORD = 80
"""Octets of a TCP-MD5 key (TCP_MD5SIG_MAXKEYLEN)."""
HOLD_SECONDS = 90
"""RFC 4271 10."""
_FAMILY = {4: Family.IPV4, 6: Family.IPV6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """What is mirrored of the API, and what this node knows beside it."""

    me: str
    nodes: Mapping[str, Node]
    configurations: tuple[BGPConfiguration, ...] = ()
    peers: tuple[BGPPeer, ...] = ()
    filters: Mapping[str, BGPFilter] = field(default_factory=dict)
    pools: tuple[IPPool, ...] = ()
    passwords: Mapping[SecretKey, str] = field(default_factory=dict, repr=False)
    """Those that this node has; empty where the Secrets are not mounted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """What is the same for all sessions of this node."""

    asn: Asn
    router_id: RouterId
    listen_port: int = PORT
    listen_addresses: tuple[Address, ...] = ()
    """Where connections are taken; empty: at every address."""
    log_severity: str | None = None
    """What is logged of BGP (``configuration.LOG_LEVELS``); None: what is of all else."""
    cluster_id: RouterId | None = None
    """This node is a route reflector of this cluster."""
    leaving: bool = False
    """This node is about to go (:func:`is_leaving`): its routes ask to be passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peering:
    """The speaker and its peers. Without a speaker this node speaks no BGP."""

    speaker: Speaker | None = None
    peers: tuple[Peer, ...] = ()
    """By name; no two have one address."""
    gateways: tuple[tuple[Address, Address], ...] = ()
    """Peers' addresses, and by which gateway each is reached (``reachableBy``)."""
    unprogrammed: tuple[Network, ...] = ()
    """Learnt prefixes in these ranges are no routes of this node, whose own datapath serves Services' addresses; they
    are for its peers alone."""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """A session that somebody asks for."""

    name: str
    address: Address
    port: int = 0
    asn: Asn
    node: Node | None = None
    """The peer, where it is a node."""
    asked: BGPPeer | None = None
    """None: the node mesh."""


def peering(objects: Objects, staying: Container[str] = ()) -> Peering:
    """What ``objects.me`` should speak. ``staying``: names of sessions that stay as they were in the mesh, though it is
    off.
    """
    node = objects.nodes.get(objects.me)
    asked = bool(objects.peers) or any(one.name == DEFAULT for one in objects.configurations)
    if node is None or not asked:
        return Peering()
    if not addresses_of(node):
        fault = f"node {node.name} has no address, so it cannot speak BGP"
        remedy = "give the Node an InternalIP, or the annotation projectcalico.org/IPv4Address"
        return Peering(faults=(Fault(fault, remedy, about=("Node", node.name)),))
    return _Peering(objects, node, staying).made()


def addresses_of(node: Node) -> dict[int, Address]:
    """A node's address for BGP by family (4, 6): what its annotation says, else its first InternalIP."""
    found = {one.version: one for one in reversed(node.addresses)}
    if node.bgp is not None:
        found |= {one.version: one for one in (node.bgp.ipv4, node.bgp.ipv6) if one is not None}
    return dict(sorted(found.items()))


def router_id(node: Node) -> RouterId:
    """A node's BGP identifier: its IPv4 address, or a hash of its name where it has none (RFC 6286)."""
    address = addresses_of(node).get(4)
    if isinstance(address, IPv4Address) and not address.is_unspecified:
        return address
    return IPv4Address(int.from_bytes(blake2b(node.name.encode(), digest_size=4).digest()) or 1)


def is_leaving(node: Node) -> bool:
    """A node's traffic is to go elsewhere: it is cordoned, as every drain begins, or is to be deleted. Its routes stay,
    so that what is reached by it alone goes on, even where all nodes are cordoned.
    """
    return node.unschedulable or node.leaving


class _Peering:
    """One making of a :class:`Peering`; holds what all its steps ask."""

    def __init__(self, objects: Objects, node: Node, staying: Container[str]) -> None:
        self._objects = objects
        self._staying = staying
        self._node = node
        self._set = configuration(objects.configurations, node.name)
        self._addresses = addresses_of(node)
        self._asn = self._asn_of(node)
        self._cluster_id = _cluster_id(node)
        self._at = {address: one for one in self._others() for address in addresses_of(one).values()}
        self._faults: list[Fault] = list(self._set.faults)
        self._ranges = Ranges()
        self._configurations = {one.name: one for one in objects.configurations}
        self._policies: dict[tuple[tuple[str, ...], bool, bool], tuple[Rules, Rules]] = {}

    def made(self) -> Peering:
        sessions = self._sessions()
        outside = {one.asn for one in sessions if one.node is None and one.asn != self._local_asn(one)}
        self._ranges = Ranges(pools=self._objects.pools, services=self._set.service_ranges, outside=frozenset(outside))
        peers = [peer for one in sessions if (peer := self._peer(one)) is not None]
        self._faults += self._of_router_id()
        held = {peer.name for peer in peers}
        return Peering(
            speaker=Speaker(
                asn=self._asn,
                router_id=router_id(self._node),
                listen_port=self._set.listen_port,
                listen_addresses=tuple(self._addresses.values()) if self._set.bound_to_node else (),
                log_severity=self._set.log_severity,
                cluster_id=self._cluster_id,
                leaving=is_leaving(self._node),
            ),
            peers=tuple(sorted(peers, key=lambda peer: peer.name)),
            gateways=tuple(
                (one.address, one.asked.reachable_by)
                for one in sorted(sessions, key=lambda one: one.name)
                if one.name in held and one.asked is not None and one.asked.reachable_by is not None
            ),
            unprogrammed=self._set.service_ranges,
            faults=tuple(sorted(set(self._faults), key=lambda fault: (fault.about or ("", ""), fault.fault))),
        )

    def _others(self) -> Iterator[Node]:
        """All other nodes, in order of name."""
        return (one for name, one in sorted(self._objects.nodes.items()) if name != self._node.name)

    def _asn_of(self, node: Node) -> Asn:
        return (node.bgp and node.bgp.asn) or self._set.asn

    def _local_asn(self, session: _Session) -> Asn:
        return (session.asked and session.asked.local_asn) or self._asn

    def _sessions(self) -> list[_Session]:
        """One for each address."""
        chosen: dict[Address, _Session] = {}
        taken: dict[tuple[str, str], list[Address]] = {}
        own = set(self._addresses.values())
        for one in (*self._asked(), *self._mesh()):
            if one.address not in own:
                first = chosen.setdefault(one.address, one).asked
                if one is not chosen[one.address] and one.asked is not None and first is not None:
                    taken.setdefault((one.asked.name, first.name), []).append(one.address)
        self._faults += (_taken(*names, addresses) for names, addresses in taken.items())
        return list(chosen.values())

    def _asked(self) -> Iterator[_Session]:
        """What BGPPeers ask of this node, the one that counts first."""
        for peer in sorted(self._objects.peers, key=_precedence):
            if peer.peer_ip is None:
                yield from self._with_nodes(peer)
            elif _holds(peer, self._node):
                node = self._at.get(peer.peer_ip)
                yield _Session(
                    name=f"{peer.name}/{peer.peer_ip}",
                    address=peer.peer_ip,
                    port=peer.port,
                    asn=peer.asn or self._set.asn,
                    node=node,
                    asked=peer,
                )

    def _with_nodes(self, peer: BGPPeer) -> Iterator[_Session]:
        """Sessions with the nodes of ``peerSelector``, and of those with the ones that hold the sessions."""
        forth = _holds(peer, self._node)
        back = peer.reverse_peering == "Auto" and _matches(peer.peer_selector, self._node)
        for node in self._others():
            if (forth and _matches(peer.peer_selector, node)) or (back and _holds(peer, node)):
                for address in self._common(node):
                    yield _Session(
                        name=f"{peer.name}/{address}", address=address, asn=self._asn_of(node), node=node, asked=peer
                    )

    def _mesh(self) -> Iterator[_Session]:
        on = self._set.node_mesh and self._cluster_id is None
        for node in self._others():
            for address in self._common(node):
                name = f"mesh/{node.name}" if address.version == 4 else f"mesh/{node.name}/ipv6"
                if (on and _cluster_id(node) is None) or name in self._staying:
                    yield _Session(name=name, address=address, asn=self._asn_of(node), node=node)

    def _common(self, node: Node) -> Iterator[Address]:
        """The other node's addresses of the families that both have."""
        return (address for family, address in addresses_of(node).items() if family in self._addresses)

    def _peer(self, session: _Session) -> Peer | None:
        """None for a session that cannot be held as it is asked for."""
        asked, node = session.asked, session.node
        key = asked.password if asked is not None else self._set.mesh_password
        password = self._objects.passwords.get(key) if key is not None else None
        if key is not None and (fault := _of_password(key, password, asked)) is not None:
            self._faults.append(fault)
            return None
        if asked is not None:
            self._faults += self._of_peer(session, asked)
        external = self._local_asn(session) != session.asn
        return Peer(
            name=session.name,
            session=self._session_settings(session, password),
            tables=self._table_settings(session, external=external, is_node=node is not None),
            kind=_kind(asked),
        )

    def _session_settings(self, session: _Session, password: str | None) -> SessionSettings:
        asked, node, family = session.asked, session.node, session.address.version
        own = self._addresses.get(family)
        bound = asked is None or asked.source_address == "UseNodeIP"
        keepalive = asked.keepalive_seconds if asked is not None else None
        restart = self._set.mesh_restart_seconds if asked is None else asked.restart_seconds
        families, external = self._families(session), session.asn != self._local_asn(session)
        return SessionSettings(
            address=session.address,
            port=session.port or (self._listens(node) if node is not None else PORT),
            local=own if bound else None,
            passive=node is not None and own is not None and int(session.address) > int(own),
            local_asn=self._local_asn(session),
            peer_asn=session.asn,
            router_id=router_id(self._node),
            password=password,
            hops=asked.hops if asked is not None else None,
            hold_seconds=HOLD_SECONDS if keepalive is None else 3 * keepalive,
            families=families,
            add_path=() if external else tuple((one, AddPath.BOTH) for one in sorted(families)),
            extended_next_hops=families & {Family.IPV4} if family == 6 else frozenset(),
            restart_seconds=RESTART if restart is None else restart,
            # Traffic leaves a switch that is gone within a moment only where somebody looks that often.
            bfd=node is None and external,
        )

    def _listens(self, node: Node) -> int:
        named = (self._configurations.get(name) for name in (DEFAULT, NODE + node.name))
        return configuration((one for one in named if one is not None), node.name).listen_port

    def _families(self, session: _Session) -> frozenset[Family]:
        """Between nodes each session carries its own family, and the one over IPv6 both where no other carries IPv4. To
        others it offers both, as far as there is a next hop: IPv6 routes need an IPv6 address of this node, IPv4 routes
        may have one instead of IPv4 (RFC 8950).
        """
        own, node = _FAMILY[session.address.version], session.node
        if own is Family.IPV4:
            alone = node is not None or 6 not in self._addresses
        else:
            alone = node is not None and 4 in self._addresses and 4 in addresses_of(node)
        return frozenset({own}) if alone else frozenset(Family)

    def _table_settings(self, session: _Session, *, external: bool, is_node: bool) -> TableSettings:
        asked = session.asked
        names = asked.filters if asked is not None else ()
        imports, exports = self._policies_of(names, external, is_node)
        if asked is None and session.name in self._staying:
            imports += passed_over(self._asn)
        theirs = _cluster_id(session.node) if session.node is not None else None
        keeps = asked is not None and (asked.next_hop_mode == "Keep" or _keeps_by_old_name(asked))
        return TableSettings(
            imports=imports,
            exports=exports,
            client=not external and self._cluster_id is not None and theirs != self._cluster_id,
            cluster_id=self._cluster_id,
            keep_next_hop=external and keeps,
            allowed_own_asn=asked.allowed_local_asns if asked is not None else 0,
            most_prefixes=MOST_PREFIXES,
            leaving=is_leaving(self._node),
        )

    def _policies_of(self, names: tuple[str, ...], external: bool, is_node: bool) -> tuple[Rules, Rules]:
        """One pair of rules for all peers that have the same."""
        key = (names, external, is_node)
        if key not in self._policies:
            filters = self._objects.filters
            self._policies[key] = policies(names, filters, self._ranges, external=external, is_node=is_node)
        return self._policies[key]

    def _of_peer(self, session: _Session, asked: BGPPeer) -> Iterator[Fault]:
        """What of a BGPPeer cannot be, though its session is held."""
        about = ("BGPPeer", asked.name)
        if missing := [name for name in asked.filters if name not in self._objects.filters]:
            what = f"there is no BGPFilter {', '.join(missing)}, so no route passes from or to {session.address}"
            yield Fault(what, "make the BGPFilter, or remove it from spec.filters", about=about)
        node = session.node
        if node is not None and self._asn_of(node) != session.asn:
            what = f"{session.address} is node {node.name} of AS {self._asn_of(node)}, not of AS {session.asn}"
            yield Fault(
                f"{what}: it will refuse the session", "correct spec.asNumber, or use peerSelector", about=about
            )
        if asked.next_hop_mode == "Self" and session.asn == self._local_asn(session):
            what = f"nextHopMode Self counts for peers of other systems, and {session.address} is of this one"
            yield Fault(what, "remove spec.nextHopMode; a route keeps its next hop within a system", about=about)

    def _of_router_id(self) -> Iterator[Fault]:
        mine = router_id(self._node)
        same = [one.name for one in self._others() if router_id(one) == mine]
        if same:
            what = f"node {', '.join(same)} has the router id {mine} of node {self._node.name} too"
            remedy = "give each node an IPv4 address of its own (annotation projectcalico.org/IPv4Address)"
            yield Fault(f"{what}: no session between them comes up", remedy, about=("Node", self._node.name))


def _kind(asked: BGPPeer | None) -> PeerKind:
    if asked is None:
        return "NodeMesh"
    return "NodePeer" if asked.node or asked.node_selector else "GlobalPeer"


def _cluster_id(node: Node) -> RouterId | None:
    found = node.bgp.cluster_id if node.bgp is not None else None
    return found if isinstance(found, IPv4Address) else None


def _precedence(peer: BGPPeer) -> tuple[bool, bool, str]:
    return not peer.node, not peer.node_selector, peer.name


def _holds(peer: BGPPeer, node: Node) -> bool:
    """Whether a BGPPeer asks this node to hold its sessions."""
    return peer.node == node.name if peer.node else _matches(peer.node_selector, node)


def _matches(selector: str, node: Node) -> bool:
    """A selector that is not understood selects nothing; ``cluster`` refuses an object that has one."""
    matches = parse_selector(selector)
    return not isinstance(matches, str) and matches(dict(node.labels))


def _keeps_by_old_name(asked: BGPPeer) -> bool:
    return asked.keep_original_next_hop and asked.next_hop_mode == "Auto"


def _taken(name: str, first: str, addresses: Sequence[Address]) -> Fault:
    """``addresses``: of the peers that the BGPPeer ``name`` asks for, and that ``first`` has."""
    whose = f"BGPPeer {first}" if first != name else "another node of it"
    others = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
    what = f"{addresses[0]}{others} is the peer that {whose} names too, and there is one session with an address"
    return Fault(what, "delete one of the two, or select other nodes", about=("BGPPeer", name))


def _of_password(key: SecretKey, password: str | None, asked: BGPPeer | None) -> Fault | None:
    """Why a session is not held; None for a password that can be used."""
    about = ("BGPPeer", asked.name) if asked is not None else ("BGPConfiguration", DEFAULT)
    whose = f"Secret {key.name}, key {key.key}"
    if password is None:
        what = f"the password of {whose} is not on this node, so no session is held"
        return Fault(what, "make the Secret in the namespace of airmesh, and have it mounted there", about=about)
    if not 1 <= len(password.encode()) <= MOST_PASSWORD:
        what = f"the password of {whose} has {len(password.encode())} octets, so no session is held"
        return Fault(what, f"use 1 to {MOST_PASSWORD} octets (RFC 2385)", about=about)
    return None
