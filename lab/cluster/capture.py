"""What the hosts of a lab send into the fabric, captured where it comes in: each packet once, at its sender's port.

Owns one packet socket a port, in the namespace of the bridge or of the switch, and the thread that reads them. Promises
that nothing is changed and that nothing was missed unsaid (`missed`); keeps a count of each kind of packet, no packets.
What a packet means is `packets`' to say. Source: packet(7).
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Generic, TypeVar

from lab.cluster import namespaces
from lab.cluster.packets import Flow, Packet, parse, parse_flow
from lab.topology import FABRIC_LINK, Host, LabError, Topology
from linux.netns import enter

_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_PACKET_OUTGOING = 4
_HEADERS = 192
"""Bytes of a frame that are read: Ethernet, outer IPv6, UDP, VXLAN, Ethernet, IPv6, ports."""
_ROOM = 16 << 20
_POLL_SECONDS = 0.1


Seen = TypeVar("Seen")


class Capture(Generic[Seen]):
    """Packets that hosts send, from the beginning of the `with` until its end."""

    def __init__(self, ports: Mapping[str, Mapping[str, str]], read: Callable[[bytes], Seen | None]) -> None:
        """``ports``: by network namespace, each with the name that its packets count for; ``read``: what is counted of
        a frame, None: nothing.
        """
        self._ports, self._parse = ports, read
        self._sockets: dict[socket.socket, str] = {}
        self._ready, self._over = threading.Event(), threading.Event()
        self._fault = ""
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self.seen: Counter[tuple[str, Seen]] = Counter()
        """(Name of the port, what was read) → how many."""
        self.missed = 0
        """Packets that the kernel had no room to show; known at the end."""

    @staticmethod
    def of_lab(topology: Topology, hosts: Iterable[Host] | None = None) -> Capture[Packet]:
        """Packets by the host that sent them; ``hosts``: those that are listened to, all of the lab unless given."""
        names = [host.name for host in hosts or topology.hosts]
        if topology.switches:
            ports = {one.namespace: {one.port(name).name: name for name in names} for one in topology.switches}
            return Capture(ports, parse)
        return Capture({topology.fabric_namespace: {f"{FABRIC_LINK[0]}-{name}": name for name in names}}, parse)

    @staticmethod
    def of_switches(topology: Topology, hosts: Iterable[Host]) -> Capture[Flow]:
        """TCP connections by the switch that hosts send them to."""
        names = [host.name for host in hosts]
        ports = {one.namespace: {one.port(name).name: one.name for name in names} for one in topology.switches}
        return Capture(ports, parse_flow)

    def __enter__(self) -> Capture[Seen]:
        """Returns when every port is listened to. Raises `LabError`."""
        self._thread.start()
        self._ready.wait()
        if self._fault:
            raise LabError(self._fault)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Counts are final afterwards."""
        self._over.set()
        self._thread.join()

    def of(self, host: str) -> Counter[Seen]:
        """What one host has sent so far."""
        return Counter({packet: count for (sender, packet), count in self.seen.copy().items() if sender == host})

    def _run(self) -> None:
        try:
            self._listen()
        except OSError as refusal:
            self._fault = f"capture in {', '.join(self._ports)}: {refusal}"
            return
        finally:
            self._ready.set()
        with selectors.DefaultSelector() as poll:
            for one in self._sockets:
                poll.register(one, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in poll.select(_POLL_SECONDS):
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)
        for one in self._sockets:
            self._read(one)
            self.missed += struct.unpack("II", one.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
            one.close()

    def _listen(self) -> None:
        for namespace, ports in self._ports.items():
            enter(str(namespaces.NETNS / namespace))  # for good: the thread ends with the capture
            for port, host in ports.items():
                made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                self._sockets[made] = host
                made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
                made.bind((port, _ETH_P_ALL))
                made.setblocking(False)

    def _read(self, one: socket.socket) -> None:
        host = self._sockets[one]
        try:
            while True:
                frame, sender = one.recvfrom(_HEADERS)
                found = self._parse(frame) if sender[2] != _PACKET_OUTGOING else None
                if found is not None:
                    self.seen[host, found] += 1
        except BlockingIOError:
            pass
        except OSError as fault:
            if fault.errno != errno.ENETDOWN:  # a port that is down, or goes down: there is nothing to see
                raise
