"""WireGuard of `routing` on n2: passes of its own code over the kernel's driver, and the routes that follow.

It runs in the VM. A line of standard input is what n2 knows (:class:`Heard`), and the line that answers is what n2 has
after a pass (:class:`Has`). The whole service would take minutes to start on an emulated processor; what of it knows
WireGuard is in this.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec

from kit.tunnels import next_hop
from linux.netlink import Netlink
from proto.addresses import Block
from proto.net import Address, from_wire, to_wire
from proto.routes import NodeRoutes, WireguardKey
from services.routing.core.wireguard import Known, Wish
from services.routing.devices import Devices as TunnelDevices
from services.routing.wireguard import Wireguard
from services.routing.wireguard_device import Devices
from services.routing.wireguard_keys import KeyFile

STATE = Path("/run/airmesh")
PORT = 51820
PROGRAM = "no-program-in-its-place"
"""Without the kernel's driver there is no device."""


class Heard(msgspec.Struct, frozen=True):
    """What n2 knows."""

    me: str
    local: tuple[Address, ...]
    other: NodeRoutes
    blocks: tuple[Block, ...]


class Has(msgspec.Struct, frozen=True):
    """What n2 has after a pass."""

    mine: tuple[WireguardKey, ...]
    device: str
    """That routes to the other node's pods lead out by; empty: none."""
    proved: bool
    faults: tuple[str, ...]


class Agent:
    """The pass and what it needs."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        tunnels = TunnelDevices(Path("/proc/sys"), programs=False)
        self._devices = Devices(self._netlink, tunnels, STATE / "sockets", program=PROGRAM)
        self._agent = Wireguard(KeyFile(STATE), self._devices)
        self._device = ""

    def follow(self, heard: Heard) -> Has:
        """One pass."""
        other, link = heard.other, 0
        if self._device:
            link = int(Path(f"/sys/class/net/{self._device}/ifindex").read_text())
        known = Known(
            me=heard.me,
            routes={other.node: other},
            blocks={block.cidr: block for block in heard.blocks},
            underlay={other.node: other.underlay},
            families=frozenset((4, 6)),
            complete=True,
            reported=frozenset({other.node}),
        )
        wish = Wish(known=known, port=PORT, uplink_mtu=1500, local=heard.local, taken={other.node: (link,)})
        state = self._agent.run(wish, now=time.time(), clock=time.monotonic())
        slot = state.slots.get(other.node)
        if slot is not None:
            self._lead(heard, state.outer[other.node], ("am-wg", "am-wg2")[slot])
        faults = tuple(fault.fault for fault in (*state.faults, *((state.fault,) if state.fault else ())))
        return Has(state.mine, self._device, other.node in state.proved, faults)

    def _lead(self, heard: Heard, outer: Address, device: str) -> None:
        """The routes to the other node's pods, as the planner makes them."""
        for cidr in heard.other.prefixes:
            words = f"{cidr} via {next_hop(outer, cidr.version)} dev {device} onlink proto 186 metric 64"
            subprocess.run(["ip", "route", "replace", *words.split()], check=True, timeout=60)
        self._device = device


def main() -> None:
    """A pass for each line."""
    agent = Agent()
    for line in sys.stdin.buffer:
        heard = msgspec.json.decode(line, type=Heard, dec_hook=from_wire)
        sys.stdout.buffer.write(msgspec.json.encode(agent.follow(heard), enc_hook=to_wire) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
