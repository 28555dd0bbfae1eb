"""Tunnel devices in the kernel: seen, made, mended and taken away, in the thread of :mod:`services.routing.kernel`.

A device is made in an order in which a death in between leaves what is known again: with its group first, its mark
last. Its ``rp_filter`` is loose, since a packet of the other node itself (of measurement, of its kubelet) comes in by
the tunnel from an address that an uplink leads to; what a source may send is judged by the datapath.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Interface, ip_address
from pathlib import Path

from kit.tunnels import DEVICES, ROUTE_PROTOCOL, Tunnel, parse_alias, tunnel_alias, vtep_mac
from linux import bpf, clsact, rtnl
from linux.netlink import Netlink, NetlinkRefused
from linux.tunnel_devices import TunnelDevices, TunnelLink
from services.routing.core.fib import (
    GROUP,
    AddDevice,
    Device,
    Entry,
    MendDevice,
    RemoveDevice,
    SeenDevice,
)
from services.routing.core.wireguard import DEVICES as SLOTS
from services.routing.rtnetlink import read_forwarding, read_neighbour

NAMES = tuple(sorted({name for by_family in DEVICES.values() for name in by_family.values()} | {*SLOTS.values()}))
ADDRESS = IPv4Interface("169.254.97.109/32")
"""Of every tunnel device, scope host: nobody is reached by it."""
PEER = "am-ipip-p"
"""Other end of the veth that carries IPIP."""
LOOKUPS = {name: 18600 + at for at, name in enumerate(NAMES)}
"""Routing table for sockets that are bound to a device, by its name."""
_LOOSE = "2"
_FAMILIES = (2, 10)


class Devices:
    """See the module. Blocking; raises NetlinkRefused.

    ``programs``: the datapath's programs must be on a VXLAN device before it takes packets; on one for IPIP they always
    must.
    """

    def __init__(self, sysctls: Path, *, programs: bool) -> None:
        self._sysctls = sysctls
        self._programs = programs
        self._links = TunnelDevices()

    def close(self) -> None:
        """Let go of the socket."""
        self._links.close()

    def seen(self) -> tuple[SeenDevice, ...]:
        """Whatever has the name of a tunnel device."""
        return tuple(self._seen(link) for name in NAMES if (link := self._links.named(name)) is not None)

    def entries(self, netlink: Netlink, devices: Iterable[SeenDevice]) -> frozenset[Entry]:
        """Permanent neighbours and forwarding entries of devices of ours."""
        found: set[Entry | None] = set()
        for device in devices:
            if device.is_ours:
                for family in _FAMILIES:
                    bodies = netlink.dump(rtnl.GETNEIGH, rtnl.neighbours_query(device.index, family))
                    found |= {read_neighbour(body) for body in bodies}
                if device.kind == "vxlan":
                    bodies = netlink.dump(rtnl.GETNEIGH, rtnl.forwardings_query(device.index))
                    found |= {read_forwarding(body) for body in bodies}
        links = {device.index for device in devices}
        return frozenset(entry for entry in found if entry is not None and entry.link in links)

    def apply(self, operation: AddDevice | MendDevice | RemoveDevice) -> None:
        """Do it."""
        if isinstance(operation, RemoveDevice):
            self._links.remove(operation.index)
            self._links.unbind_lookups(operation.name, LOOKUPS[operation.name])
        elif isinstance(operation, MendDevice):
            self._complete(operation.device, operation.index)
        else:
            self._complete(operation.device, self._made(operation.device))

    def complete(self, name: str, index: int, tunnel: Tunnel, mtu: int) -> None:
        """Give a device all that it needs to take packets, its mark last."""
        self._links.bring_up(index, mtu, ADDRESS)
        with suppress(OSError):  # seen at the next look, which finds it not whole
            self._filter(name).write_text(_LOOSE)
        if tunnel.local.version == 6:
            self._links.bind_lookups(name, index, LOOKUPS[name], ROUTE_PROTOCOL)
        self._links.mark(index, tunnel_alias(tunnel))

    def is_whole(self, name: str, index: int, tunnel: Tunnel | None) -> bool:
        """Whether a device has its address, and what the kernel filters on it is as it must be."""
        six = tunnel is not None and tunnel.local.version == 6
        return (
            self._links.has(index, ADDRESS)
            and self._is_loose(name)
            and (not six or self._links.bound(name, index, LOOKUPS[name]))
        )

    def in_the_way(self, device: Device) -> str:
        """Name of another device that has the same tunnel number at the same port; empty for none."""
        with suppress(NetlinkRefused):
            for link in self._links.vxlans():
                if link.name not in NAMES and (link.port, link.vni) == (device.tunnel.port, device.tunnel.vni):
                    return link.name
        return ""

    def _made(self, device: Device) -> int:
        tunnel = device.tunnel
        if device.kind == "vxlan":
            mac = vtep_mac(tunnel.local)
            return self._links.make_vxlan(
                device.name, mac=mac, local=tunnel.local, vni=tunnel.vni, port=tunnel.port, group=GROUP
            )
        return self._links.make_veth(device.name, PEER, group=GROUP)

    def _complete(self, device: Device, index: int) -> None:
        if device.kind == "veth":
            self._links.bring_peer_up(PEER, device.mtu)
        self.complete(device.name, index, device.tunnel, device.mtu)

    def _seen(self, link: TunnelLink) -> SeenDevice:
        marked = parse_alias(link.alias)
        tunnel = marked
        if link.kind == "vxlan" and link.local:
            tunnel = Tunnel(model="vxlan", local=ip_address(link.local), port=link.port, vni=link.vni)
        return SeenDevice(
            name=link.name,
            index=link.index,
            kind=link.kind,
            up=link.up,
            mtu=link.mtu,
            group=link.group,
            alias=link.alias,
            tunnel=tunnel,
            whole=self.is_whole(link.name, link.index, tunnel),
            receives=marked is not None and (not self._needs_programs(link) or _has_program(link.index)),
        )

    def _needs_programs(self, link: TunnelLink) -> bool:
        return self._programs or link.kind == "veth"

    def _filter(self, name: str) -> Path:
        return self._sysctls / "net/ipv4/conf" / name / "rp_filter"

    def _is_loose(self, name: str) -> bool:
        try:
            return self._filter(name).read_text().strip() == _LOOSE
        except OSError:
            return True  # where it cannot be read it cannot be mended either


def _has_program(index: int) -> bool:
    """Whether the datapath takes in what comes by a device: its program is the last that it attaches there."""
    with suppress(bpf.BpfError):
        if bpf.query(index, bpf.AttachKind.TCX_INGRESS):
            return True
    with suppress(OSError):
        return clsact.filter_program(index, clsact.Parent.INGRESS) != 0
    return False


def why_refused(error: NetlinkRefused, operation: AddDevice | MendDevice | RemoveDevice, other: str) -> tuple[str, str]:
    """What the kernel's refusal means, and the remedy. ``other``: a device that is in the way, by name."""
    tunnel = None if isinstance(operation, RemoveDevice) else operation.device.tunnel
    settings = "set another vxlanVNI or vxlanPort in the FelixConfiguration default"
    if tunnel is not None and tunnel.vni and error.errno in (errno.EEXIST, errno.EADDRINUSE):
        if other:
            return (
                f"VNI {tunnel.vni} at UDP port {tunnel.port} is that of this node's device {other}",
                f"{settings}, or remove that device (`ip link del {other}`)",
            )
        return (
            f"UDP port {tunnel.port}, which vxlan needs, is taken by another program or device of this node",
            f"{settings}, or end what listens there (`ss -lnu sport = {tunnel.port}`)",
        )
    return (
        f"the kernel refused {operation}: {error.strerror or error}",
        "look at `ip -d link` and the kernel's log of this node; it is tried again each second",
    )
