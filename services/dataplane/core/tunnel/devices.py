"""What the maps say of tunnel devices: each one's entry in ``am_tunnels``, and the ends at which packets are taken.

Owns nothing but the translation: ``routing`` makes devices and marks them (``kit.tunnels``); one counts from its mark
on, whatever its name. The order of the kernel's list makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kit.tunnels import Tunnel as Marked
from services.dataplane.core.datapath.layout import LinkKey
from services.dataplane.core.datapath.tunnel_layout import Tunnel, TunnelEnd, TunnelEndKey, TunnelKind

KINDS: Mapping[str, TunnelKind] = {
    "vxlan": TunnelKind.VXLAN,
    "ipip": TunnelKind.IPIP,
    "wireguard": TunnelKind.WIREGUARD,
}
IPPROTO_IPIP, IPPROTO_UDP = 4, 17
_NO_MAC = bytes(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A tunnel device of this namespace."""

    index: int
    name: str
    mac: bytes
    """Six bytes; empty where it has none."""
    tunnel: Marked
    up: bool = True

    @property
    def kind(self) -> TunnelKind:
        """What it makes of a packet."""
        return KINDS[self.tunnel.model]


def tunnels(devices: Iterable[Device]) -> dict[LinkKey, Tunnel]:
    """``am_tunnels`` as it should be."""
    return {
        LinkKey(ifindex=one.index): Tunnel(
            kind=int(one.kind),
            family=one.tunnel.local.version,
            port=one.tunnel.port,
            vni=one.tunnel.vni,
            local=one.tunnel.local,
            mac=one.mac if len(one.mac) == 6 else _NO_MAC,
        )
        for one in devices
    }


def ends(devices: Iterable[Device]) -> dict[TunnelEndKey, TunnelEnd]:
    """``am_tunnel_ends`` as it should be. What WireGuard receives is its device's. Where two devices have one end, the
    younger has it: it is about to take the elder's place.
    """
    found: dict[TunnelEndKey, TunnelEnd] = {}
    for one in sorted(devices, key=lambda device: device.index):
        local = one.tunnel.local
        end = TunnelEnd(ifindex=one.index, vni=one.tunnel.vni)
        if one.kind is TunnelKind.VXLAN:
            found[TunnelEndKey(address=local, port=one.tunnel.port, protocol=IPPROTO_UDP)] = end
        elif one.kind is TunnelKind.IPIP:
            found[TunnelEndKey(address=local, protocol=IPPROTO_IPIP)] = end
    return found
