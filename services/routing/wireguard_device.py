"""The WireGuard devices of a node: made, found again, configured and taken away, whoever drives them.

Owns the interfaces ``am-wg`` and ``am-wg2``. The kernel's driver where there is one, else wireguard-go: a process of
its own for each device, which outlives this one and is found again by its UAPI socket; when it dies its interface is
gone, and it is started again. A device is marked (``kit.tunnels``) last, when it is ready. Blocking; all of it in a
thread in the node's network namespace, in which wireguard-go is then started, too.

wireguard-go has its socket in :data:`SOCKETS` and nowhere else. Where several nodes share one file system (a lab), each
has a folder of its own, and the process a mount namespace in which that folder is there. It gives back every mounted
network namespace and bpffs of that copy, or pods' namespaces would live on in it.
"""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kit.tunnels import Tunnel, tunnel_alias
from linux import rtnl
from linux.netlink import Message, Netlink, NetlinkRefused, attribute, text
from linux.wireguard import Change, Control, Device, KernelControl, PeerChange, SocketControl, add_link
from proto.net import Address
from services.routing.core.wireguard import DEVICES, PeerStep
from services.routing.devices import Devices as TunnelDevices

SOCKETS = Path("/var/run/wireguard")
PROGRAM = "wireguard-go"
DEADLINE = 8.0
"""Seconds for wireguard-go to make a device."""
_ISOLATED = (
    'mkdir -p /var/run/wireguard && mount --bind "$0" /var/run/wireguard && umount -a -t nsfs,bpf; exec "$1" "$2"'
)
_IFNAME, _AF_SPEC = 3, 26
_GENERATE_NO_ADDRESS = attribute(_AF_SPEC, attribute(10, attribute(8, b"\x01")))
"""IFLA_AF_SPEC, AF_INET6, IFLA_INET6_ADDR_GEN_MODE: no link-local address."""


class CannotHave(Exception):
    """There is no WireGuard here, or not as asked; says what stands in the way, and the remedy."""

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(fault)
        self.fault = fault
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface of ours as the kernel tells it."""

    index: int
    up: bool
    mtu: int
    alias: str
    kind: str
    """``wireguard``, or ``tun`` of wireguard-go."""


class Devices:
    """The devices of the namespace that the calling thread is in. Every method raises OSError and CannotHave."""

    def __init__(
        self, netlink: Netlink, tunnels: TunnelDevices | None, sockets: Path = SOCKETS, program: str = PROGRAM
    ) -> None:
        """``tunnels`` completes devices; None: this one only reads."""
        self._netlink = netlink
        self._tunnels = tunnels
        self._sockets = sockets
        self._program = program
        self._kernel: dict[int, KernelControl] = {}

    def close(self) -> None:
        """Gives sockets back; devices stay."""
        for control in self._kernel.values():
            control.close()
        self._kernel.clear()

    def link(self, slot: int) -> Link | None:
        """The interface of a slot."""
        try:
            body = self._netlink.ask(rtnl.GETLINK, rtnl.ifinfo() + text(_IFNAME, DEVICES[slot]))
        except NetlinkRefused as refused:
            if refused.errno == errno.ENODEV:
                return None
            raise
        seen = rtnl.parse_link(body)
        return Link(index=seen.link, up=seen.up, mtu=seen.mtu, alias=seen.alias, kind=rtnl.link_kind(body))

    def read(self, slot: int) -> Device | None:
        """The device of a slot; None where there is none that answers."""
        link = self.link(slot)
        if link is None:
            return None
        try:
            return self._control(slot, link).read()
        except (ConnectionError, FileNotFoundError, TimeoutError):
            return None

    def make(self, slot: int) -> Device:
        """The device of a slot, made unless it is there and answers, and up."""
        link = self.link(slot)
        if link is not None and link.kind not in ("wireguard", "tun"):
            raise CannotHave(
                f"interface {DEVICES[slot]} is {link.kind or 'no WireGuard device'} of somebody else",
                f"give it another name: `ip link set {DEVICES[slot]} name NAME`",
            )
        device = None if link is None else self.read(slot)
        if device is None:
            if link is not None:
                self.remove(slot)
            self._create(slot)
            link = self.link(slot)
            if link is None:
                raise CannotHave(f"{DEVICES[slot]} was made and is gone", "look whether somebody ends wireguard-go")
            device = self._control(slot, link).read()
        assert link is not None
        if not link.up:
            no_address = Message(
                rtnl.NEWLINK, 0, rtnl.ifinfo(link.index) + _GENERATE_NO_ADDRESS, "link without address"
            )
            self._netlink.run([no_address, rtnl.set_up(link.index)])
        return device

    def configure(self, slot: int, change: Change) -> None:
        """Changes a device."""
        link = self.link(slot)
        if link is None:
            raise FileNotFoundError(errno.ENODEV, f"{DEVICES[slot]} is gone")
        try:
            self._control(slot, link).apply(change)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CannotHave(
                    f"UDP port {change.port} for WireGuard is taken by another program of this node",
                    "end that, or set wireguardListeningPort of the FelixConfiguration to a free port",
                ) from error
            raise

    def mark(self, slot: int, mtu: int, local: Address, port: int) -> Link:
        """The interface with this MTU and its mark, by which the datapath knows it."""
        link = self.link(slot)
        if link is None:
            raise FileNotFoundError(errno.ENODEV, f"{DEVICES[slot]} is gone")
        tunnel = Tunnel(model="wireguard", local=local, port=port)
        assert self._tunnels is not None
        as_it_is = (link.mtu, link.alias) == (mtu, tunnel_alias(tunnel))
        if not as_it_is or not self._tunnels.is_whole(DEVICES[slot], link.index, tunnel):
            self._tunnels.complete(DEVICES[slot], link.index, tunnel, mtu)
        return Link(index=link.index, up=link.up, mtu=mtu, alias=tunnel_alias(tunnel), kind=link.kind)

    def remove(self, slot: int) -> bool:
        """Takes a device away, and with it wireguard-go, which ends without its interface; False: there was none.

        Only one of ours: a device of the kernel's driver, or a tun interface that has our mark or socket.
        """
        link = self.link(slot)
        if control := self._kernel.pop(slot, None):
            control.close()
        path = self._sockets / f"{DEVICES[slot]}.sock"
        ours = link is not None and (link.kind == "wireguard" or bool(link.alias) or path.exists())
        if link is not None and ours:
            body = rtnl.ifinfo(link.index)
            self._netlink.run([Message(rtnl.DELLINK, 0, body, ("link", DEVICES[slot]), (errno.ENODEV,))])
        with suppress(FileNotFoundError):
            path.unlink()
        return ours

    def _control(self, slot: int, link: Link) -> Control:
        if link.kind != "wireguard":
            return SocketControl(self._sockets / f"{DEVICES[slot]}.sock")
        if slot not in self._kernel:
            self._kernel[slot] = KernelControl(DEVICES[slot])
        return self._kernel[slot]

    def _create(self, slot: int) -> None:
        try:
            self._netlink.run([add_link(DEVICES[slot])])
        except NetlinkRefused as refused:
            if refused.errno not in (errno.EOPNOTSUPP, errno.ENOENT):
                raise
            self._start(slot)

    def _start(self, slot: int) -> None:
        """Starts wireguard-go, which returns when its interface and its socket are there."""
        name = DEVICES[slot]
        command = [self._program, name]
        if self._sockets != SOCKETS:
            self._sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
            isolated = ["sh", "-c", _ISOLATED, str(self._sockets), *command]
            command = ["unshare", "--mount", "--propagation", "private", "--", *isolated]
        environment = {name: value for name, value in os.environ.items() if name != "LOG_LEVEL"}
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
                timeout=DEADLINE,
            )
        except FileNotFoundError as error:
            raise _lacking(str(error.filename)) from error
        except subprocess.TimeoutExpired as error:
            raise CannotHave(f"wireguard-go has not made {name} in {DEADLINE:.0f} s", "it is tried again") from error
        if done.returncode == 127:
            raise _lacking(self._program)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise CannotHave(
                f"wireguard-go cannot make {name}: {words[:200] or f'exit code {done.returncode}'}",
                "it needs /dev/net/tun and CAP_NET_ADMIN, and CAP_SYS_ADMIN where AIRMESH_WIREGUARD_SOCKETS is set",
            )


def peer_change(step: PeerStep) -> PeerChange:
    """A step of the plan as a device takes it."""
    return PeerChange(
        public_key=step.public_key,
        remove=step.remove,
        endpoint=step.endpoint,
        keepalive=step.keepalive,
        allow=step.allow,
        existing=step.existing,
    )


def _lacking(program: str) -> CannotHave:
    return CannotHave(
        f"this kernel has no WireGuard, and there is no {program} here",
        "use a kernel with CONFIG_WIREGUARD, or install the Debian package wireguard-go",
    )
