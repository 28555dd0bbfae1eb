"""Reads what the checks of ``core.doctor`` judge: the kernel's routes, settings, neighbours, the firewall and the link.

A thread of its own, in the node's network namespace, so that the agent's own netlink never waits for a question. What
takes a moment (ARP, connections to other nodes) is bounded by :data:`WAIT` seconds; a proved way that is silent now by
``core.evidence.LOST`` packets of the prober.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import TypeVar

from chassis.runtime.checks import NotChecked
from chassis.runtime.service import Runtime
from kit import iptables, netfilter
from kit.netstat import counter
from linux import arp, nftables, rtnl
from linux.connections import answered
from linux.iptables import saved
from linux.netlink import Netlink, NetlinkRefused
from linux.netns import enter
from proto.findings import DoctorRequest, Finding
from proto.net import Address, Network
from services.routing.core.doctor import neighbours, routes, settings, ways
from services.routing.core.evidence import LOST, Evidence, Verdict, Way
from services.routing.core.fib import Kind, Snapshot, Uplink
from services.routing.core.mesh import Mesh, holder_of
from services.routing.installer import Installer
from services.routing.prober import Prober
from services.routing.settings import Settings

WAIT = 0.7
"""Seconds for answers of the network."""
PORTS = (10250, 22, 179, 9)
"""TCP ports of another node that are tried: the kubelet's, SSH's, BGP's, and one that nobody has. A refusal is an
answer, too."""
_PORTS_OF_MODELS = {"vxlan": "vxlan_port", "wireguard": "wireguard_port"}
_UNUSABLE = 0x20 | 0x01 | 0x40
"""NUD_FAILED, NUD_INCOMPLETE, NUD_NOARP."""

T = TypeVar("T")


class Doctor:
    """The checks of a node's routing agent."""

    def __init__(
        self,
        node: str,
        installer: Installer,
        prober: Prober,
        look: Callable[[], Mesh],
        *,
        namespace: Path | None,
        sysctls: Path,
    ) -> None:
        self._node = node
        self._installer = installer
        self._prober = prober
        self._look = look
        self._namespace = namespace
        self._sysctls = sysctls / "net"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="doctor", initializer=self._enter)

    def _enter(self) -> None:
        if self._namespace is not None:
            enter(str(self._namespace))

    async def close(self) -> None:
        """Lets go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def check_routes(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Whether packets take the routes that they should."""
        desired = tuple(one for one in self._installer.desired if one.kind is Kind.UNICAST)
        snapshot, mesh = self._installer.snapshot, self._look()
        if not self._concerns(asked) or not desired:
            return ()
        listed = routes.addresses(desired, snapshot.routes)
        taken, links = await self._read(lambda: (_taken(listed), dict(socket.if_nameindex())))
        return routes.check(
            routes.Routing(
                node=self._node,
                desired=desired,
                routes=snapshot.routes,
                taken=taken,
                links=links,
                holder=holder_of(mesh.blocks, mesh.claims),
                repairs=tuple(self._installer.repairs),
                now=int(time.time()),
            )
        )

    async def check_settings(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Whether the kernel forwards, and takes what comes by another way than it would send."""
        if not self._concerns(asked):
            return ()
        snapshot, ways4 = self._installer.snapshot, _ways(self._installer)
        arrives = {peer: _arrives(snapshot, one) for peer, one in ways4.items()}
        remotes = {peer: one.remote for peer, one in ways4.items()}
        seen = await self._read(lambda: self._settings(snapshot, arrives, remotes))
        silent = await self._prober.silent((ways4[peer] for peer in settings.filtered(seen)), times=1)
        return settings.check(replace(seen, arrives={peer: arrives[peer] for peer in ways4 if ways4[peer] in silent}))

    def _settings(
        self, snapshot: Snapshot, arrives: Mapping[str, str], remotes: Mapping[str, Address]
    ) -> settings.Settings:
        names = [*(one.name for one in snapshot.uplinks), *(one.name for one in snapshot.devices if one.is_ours)]
        shared = self._number("ipv4/conf/all/rp_filter")
        back = {peer: _out_by(remote) for peer, remote in remotes.items() if remote.version == 4}
        return settings.Settings(
            node=self._node,
            links=tuple(
                settings.LinkSettings(
                    name=name,
                    forwarding=self._number(f"ipv4/conf/{name}/forwarding"),
                    reverse_path_filter=max(shared, own := self._number(f"ipv4/conf/{name}/rp_filter")),
                    own_filter=own,
                )
                for name in names
            ),
            forwarding6=self._number("ipv6/conf/all/forwarding"),
            filtered=counter(Path("/proc/thread-self/net/netstat").read_text(), "TcpExt", "IPReversePathFilter"),
            back=back,
            arrives=arrives,
        )

    def _number(self, name: str) -> int:
        return int((self._sysctls / name).read_text().strip())

    async def check_neighbours(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Whose MAC addresses stand for the nodes' addresses. Raises NotChecked."""
        if not self._concerns(asked):
            return ()
        mesh, found = self._look(), list[Finding]()
        for uplink in self._installer.snapshot.uplinks if self._node else ():
            for interface in uplink.addresses if uplink.up else ():
                if interface.version == 4:
                    own, network = IPv4Address(int(interface.ip)), interface.network
                    seen = await self._read(lambda up=uplink, own=own, net=network: self._link(up, own, net, mesh))  # type: ignore[misc]
                    found += neighbours.check(seen)
        return found

    def _link(self, uplink: Uplink, own: IPv4Address, network: Network, mesh: Mesh) -> neighbours.Link:
        peers = {
            address: one.node
            for one in mesh.routes.values()
            if one.node != self._node
            for address in one.underlay
            if isinstance(address, IPv4Address) and address in network
        }
        peers = neighbours.asked(own, peers)
        try:
            answered = arp.answers(uplink.name, (own, *peers), own, WAIT)
        except PermissionError as error:
            raise NotChecked("packet sockets need CAP_NET_RAW") from error
        return neighbours.Link(
            node=self._node,
            device=uplink.name,
            own=own,
            peers=peers,
            answers={address: frozenset(macs) for address, macs in answered.items()},
            entries=_neighbours(uplink.index),
        )

    async def check_ways(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Why a way to another node is not answered."""
        return ways.check(await self._measured()) if self._concerns(asked) else ()

    async def check_mtu(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Ways that take less than both nodes' interfaces."""
        seen = self._of_installer({})
        if not self._concerns(asked) or not (small := [one.way.remote for one in ways.small(seen)]):
            return ()
        uplinks = await self._read(lambda: {remote: _out_by(remote) for remote in small})
        return ways.check_mtu(self._of_installer(uplinks))

    async def _measured(self) -> ways.Ways:
        """Of proved ways, one that does not answer at once is asked again while what may explain it is read."""
        seen = self._of_installer({})
        proved = [one.way for one in seen.measured if one.evidence.verdict is Verdict.WORKS]
        doubtful = await self._prober.silent(proved, times=1)
        failing = [one.way.remote for one in seen.measured if one.fails or one.way in doubtful]
        if not failing:
            return seen
        silent, explained = await asyncio.gather(
            self._prober.silent(doubtful, times=LOST - 1), self._read(lambda: self._explained(failing))
        )
        measured = tuple(replace(one, silent=LOST if one.way in silent else 0) for one in explained.measured)
        return replace(explained, measured=measured)

    def _explained(self, failing: Sequence[Address]) -> ways.Ways:
        uplinks = {remote: _out_by(remote) for remote in failing}
        try:
            legacy = (iptables.parse(saved(version), version) for version in (4, 6))
            ruleset = netfilter.joined(netfilter.parse(nftables.ruleset()), *legacy)
        except (nftables.NoRuleset, ValueError) as error:
            raise NotChecked(str(error)) from error
        seen = self._of_installer(uplinks)
        return ways.Ways(node=seen.node, measured=seen.measured, reached=_reached(failing), ruleset=ruleset)

    def _of_installer(self, uplinks: Mapping[Address, str]) -> ways.Ways:
        configured = self._look().settings
        measured = []
        for peer, path, evidence, most in self._installer.paths():
            if (way := path.way) is None:
                continue
            port = _PORTS_OF_MODELS.get(way.model, "")
            measured.append(
                ways.Measured(
                    peer=peer,
                    way=way,
                    device=path.device,
                    evidence=evidence or Evidence(),
                    port=int(getattr(configured, port)) if port else 0,
                    most=most,
                    uplink=uplinks.get(way.remote, ""),
                )
            )
        return ways.Ways(node=self._node, measured=tuple(dict.fromkeys(measured)), reached={}, ruleset=None)

    def _concerns(self, asked: DoctorRequest) -> bool:
        return asked.kind in ("all", "connection") or (asked.kind == "node" and bool(self._node))


def start(
    runtime: Runtime[Settings],
    installer: Installer,
    prober: Prober,
    look: Callable[[], Mesh],
    namespace: Path | None,
) -> None:
    """Adds the checks of this agent; a gateway has none."""
    if runtime.settings.gateway:
        return
    node, sysctls = runtime.settings.node, runtime.settings.sysctl_root
    doctor = Doctor(node, installer, prober, look, namespace=namespace, sysctls=sysctls)
    runtime.on_stop(doctor.close)
    runtime.checks.add(routes.CODES, doctor.check_routes)
    runtime.checks.add(settings.CODES, doctor.check_settings)
    runtime.checks.add(neighbours.CODES, doctor.check_neighbours)
    runtime.checks.add(ways.CODES, doctor.check_ways)
    runtime.checks.add(ways.PATHS, doctor.check_mtu)


def _arrives(snapshot: Snapshot, way: Way) -> str:
    """The uplink that another node's packets come by: what a tunnel carries, by that with the address it is sent to."""
    return next(
        (
            one.name
            for one in snapshot.uplinks
            if one.index == way.link or way.local in {interface.ip for interface in one.addresses}
        ),
        "",
    )


def _ways(installer: Installer) -> dict[str, Way]:
    """The way that each other node's packets take, by IPv4."""
    found: dict[str, Way] = {}
    for peer, path, _, _ in installer.paths():
        if (way := path.way) is not None and way.remote.version == 4:
            found.setdefault(peer, way)
    return found


def _taken(addresses: Iterable[Address]) -> dict[Address, routes.Taken | str]:
    found: dict[Address, routes.Taken | str] = {}
    with Netlink() as netlink:
        for address in addresses:
            try:
                seen = rtnl.parse_route(netlink.ask(rtnl.GETROUTE, rtnl.lookup_query(address)))
            except NetlinkRefused as error:
                found[address] = errno.errorcode.get(error.errno or 0, str(error))
                continue
            size = address.max_prefixlen // 8
            found[address] = routes.Taken(
                destination=ip_network((seen.destination or bytes(size), seen.length)),
                table=seen.table,
                kind=seen.kind,
                via=ip_address(seen.gateway) if seen.gateway else None,
                link=seen.link,
                metric=seen.metric,
                protocol=seen.protocol,
            )
    return found


def _out_by(address: Address) -> str:
    """Name of the interface that packets to an address leave by; empty without one."""
    taken = _taken([address])[address]
    names = dict(socket.if_nameindex())
    return names.get(taken.link, "") if isinstance(taken, routes.Taken) else ""


def _neighbours(index: int) -> dict[IPv4Address, tuple[bytes, bool]]:
    with Netlink() as netlink:
        bodies = netlink.dump(rtnl.GETNEIGH, rtnl.neighbours_query(index, socket.AF_INET))
    seen = [one for one in map(rtnl.parse_neighbour, bodies) if one.link == index and not one.state & _UNUSABLE]
    return {IPv4Address(one.address): (one.mac, bool(one.state & rtnl.PERMANENT)) for one in seen if one.address}


def _reached(addresses: Iterable[Address]) -> dict[Address, bool]:
    """Whether each address answers a TCP connection, with whatever."""
    wanted = dict.fromkeys(addresses)
    heard = answered({(address, port) for address in wanted for port in PORTS}, WAIT)
    return {address: any((address, port) in heard for port in PORTS) for address in wanted}
