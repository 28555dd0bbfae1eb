"""WireGuard against the kernel's own driver: `routing` with wireguard-go on n1, another kernel on n2.

On n2 devices, keys and peers are made by routing's own code, too, with the driver by generic netlink
(`wireguard_agent.py`).
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from chassis.bus.client import Bus
from linux.wireguard import Peer, SocketControl
from proto.addresses import Block
from proto.net import from_wire, to_wire
from proto.objects import FelixConfiguration
from proto.routes import NodeRoutes
from proto.subjects import BLOCKS, ROUTES
from services.routing.core.wireguard import public_text
from services.routing.wireguard_keys import public_of
from tests.bpf import frames
from tests.bpf.test_tunnels_live import captured
from tests.bpf.world import run
from tests.netns.routing.wireguard_nodes import clear, kinds
from tests.vm.conftest import BLOCKS_OF_FAR, FAR, FAR_POD, NEAR, SERVED, UNDERLAY, Ends, as_user, hear
from tests.vm.wireguard_agent import STATE, Has, Heard

pytestmark = [pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1500)]

NEAR_NODE, FAR_NODE = UNDERLAY[NEAR][0], UNDERLAY[FAR][0]
PORT = 51820
STRANGER = "172.30.0.99"
FITS = {4: 1440 - 28, 6: 1440 - 48}
"""Payload of the longest datagram in the tunnel, which is over IPv4."""
MEGABYTES = 4 << 20
SAID = NodeRoutes(
    FAR, tuple(map(ip_address, UNDERLAY[FAR])), tuple(map(ip_network, BLOCKS_OF_FAR)), ("wireguard",), 1500
)
INITIATION, RESPONSE, TRANSPORT = 1, 2, 4
"""Types of WireGuard's messages."""


@dataclass
class Pair(Ends):
    """Both nodes when encryption is asked for. n2 goes on only as it is asked to: while a test waits for something."""

    far: Has = field(default=Has((), "", False, ()))
    """n2 after its last pass."""

    def follow(self) -> Has:
        """A pass of n2 over what the bus says, and its word."""
        heard = as_user(self.cluster, "cluster", None, self._look)
        line = msgspec.json.encode(heard, enc_hook=to_wire).decode()
        before = self.far
        self.far = msgspec.json.decode(self.vm("ask", line=line), type=Has, dec_hook=from_wire)
        if self.far.mine != before.mine:
            self.announce(replace(SAID, wireguard=self.far.mine))
        return self.far

    async def _look(self, bus: Bus) -> Heard:
        near = await bus.bucket(ROUTES).get(NEAR, NodeRoutes)
        assert near is not None, "n1 has said nothing yet"
        listed = await bus.bucket(BLOCKS).list(Block)
        blocks = tuple(entry.value for entry in listed.values() if isinstance(entry.value, Block))
        return Heard(FAR, SAID.underlay, near.value, blocks)

    def settle(self, what: str, check: Callable[[], object]) -> None:
        """Passes of n2 until something is true."""
        try:
            self.wait(what, lambda: self.follow() and check(), 300)
        except AssertionError:
            print("n2:", self.far)
            raise

    def taken(self, device: str) -> bool:
        """Whether both nodes lead by a device."""
        return self.far.device == device and all(f"dev {device} " in self.route(pod) for pod in FAR_POD.values())


@pytest.fixture(scope="module")
def pair(ends: Ends) -> Pair:
    """Encryption is asked for in both families."""
    ends.put(FelixConfiguration(name="default", wireguard_enabled=True, wireguard_enabled_v6=True))
    ends.announce(SAID)
    ends.vm("begin", words=[sys.executable, "-m", "tests.vm.wireguard_agent"])
    pair = Pair(*(getattr(ends, name.name) for name in fields(ends)))
    encrypted(pair, "am-wg")
    return pair


def encrypted(pair: Pair, device: str) -> None:
    """Waits until both nodes lead by this device, and packets pass."""
    pair.settle(f"both by {device}", lambda: pair.taken(device) and pair.far.proved)
    for version in FAR_POD:
        pair.settle("packets by it", lambda: pair.arrive([10], version))  # noqa: B023


def control(pair: Pair, device: str = "am-wg") -> SocketControl:
    """n1's wireguard-go."""
    return SocketControl(pair.cluster.folder / NEAR / "sockets" / f"{device}.sock")


def far_of(pair: Pair) -> Peer:
    """n2 as n1's device has it."""
    [peer] = control(pair).read().peers
    return peer


@contextmanager
def wires(pair: Pair) -> Iterator[dict[str, list[bytes]]]:
    """Frames that each node sends meanwhile, by node."""
    with ExitStack() as stack:
        yield {node: stack.enter_context(captured(pair.cluster.label, f"to-{node}")) for node in (NEAR, FAR)}


def nothing_clear(found: list[bytes]) -> None:
    """No frame shows a pod's address."""
    assert not [raw for raw in found if raw[12:14] in (b"\x08\x00", b"\x86\xdd") and clear(raw, b"\0never sent\0")]


def test_the_driver_is_the_kernel_s_and_has_what_routing_says(pair: Pair) -> None:
    """By `wg`, the driver's own tool: key, port and peers; on n1 wireguard-go stands in its place."""
    assert "wireguard" in pair.vm.run("ip -d link show am-wg").split("link/none")[1]
    assert "wireguard-go" not in pair.vm.run("busybox ps")
    public, peers, port, allowed = (
        pair.vm.run(f"wg show am-wg {word}").split() for word in ("public-key", "peers", "listen-port", "allowed-ips")
    )
    near = control(pair).read()
    assert public == [public_text(far_of(pair).public_key)]
    assert port == [str(PORT)]
    assert len(peers) == 1
    assert near.port == PORT
    assert {f"{NEAR_NODE}/32", f"{UNDERLAY[NEAR][1]}/128"} < set(allowed)
    assert any(ip_address(pair.addresses[4]) in network for network in map(ip_network, allowed[1:]))
    assert pair.vm.run(f"stat -c %a {STATE}/wireguard/keys.json").strip() == "600"


def test_all_of_both_families_is_encrypted(pair: Pair) -> None:
    with wires(pair) as found:
        for version in (4, 6):
            for end, own, other in (
                (pair.pod, pair.addresses[version], FAR_POD[version]),
                (pair.vm, FAR_POD[version], pair.addresses[version]),
            ):
                assert "3 packets received" in end.run(f"busybox ping -c 3 -W 5 -I {own} {other}")
                assert end("upload", source=own, host=other, port=SERVED, size=MEGABYTES)
                assert end("download", source=own, host=other, port=SERVED, size=MEGABYTES)
    for sent in found.values():
        nothing_clear(sent)
        assert kinds(sent).count(TRANSPORT) > MEGABYTES // 1500


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_around_the_mtu(pair: Pair, version: int) -> None:
    fits = FITS[version]
    sizes = [1, fits - 21, fits - 20, fits - 19, fits - 1, fits, fits + 1, 1500, 3000]
    with wires(pair) as found:
        for send, end in ((pair.from_pod, pair.vm), (pair.from_far, pair.pod)):
            assert send(sizes, version) == [""] * len(sizes)
            assert sorted((one["size"], one["whole"]) for one in hear(end, len(sizes))) == [
                (size, True) for size in sizes
            ]
    for sent in found.values():
        nothing_clear(sent)
        assert max(map(len, sent)) <= 1514
    assert pair.from_far([fits + 1], version, df=True) == ["Message too long"]
    assert pair.from_pod([fits - 19], version, df=True) == ["Message too long"], (
        "the pod's link is that of any outer family"
    )
    assert pair.from_pod([fits - 20], version, df=True) == [""]
    assert [one["size"] for one in hear(pair.vm, 1)] == [fits - 20]


def process_of(pair: Pair, device: str = "am-wg") -> int:
    """Process id of n1's wireguard-go."""
    for pid in run("ip", "netns", "pids", pair.node).split():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"wireguard-go") and words[1] == device.encode():
                return int(pid)
    raise AssertionError(f"n1 has no wireguard-go for {device}")


def from_elsewhere(frame: bytes, source: str) -> bytes:
    """The frame, sent by somebody at another address, with right sums."""
    packet = bytearray(frame[14:])
    packet[12:16] = ip_address(source).packed
    packet[10:12] = b"\0\0"
    packet[10:12] = struct.pack(">H", frames.checksum(bytes(packet[:20])))
    packet[26:28] = b"\0\0"
    return frame[:14] + bytes(packet)


def test_a_handshake_is_begun_by_the_kernel_and_copies_of_it_move_nothing(pair: Pair) -> None:
    """n2 has forgotten its sessions. What is played back from another address is neither answered nor roaming."""
    with wires(pair) as found:
        pair.vm.run("ip link set am-wg down")
        pair.vm.run("ip link set am-wg up")
        pair.vm("heard")
        pair.pod("heard")
        pair.settle("packets again", lambda: pair.from_far([10]) == [""] and hear(pair.pod, 1, 1.0))
    assert INITIATION in kinds(found[FAR])
    assert RESPONSE in kinds(found[NEAR])
    copies = [raw for raw in found[FAR] if kinds([raw])]
    assert far_of(pair).endpoint == (ip_address(FAR_NODE), PORT)
    with wires(pair) as found:
        for raw in copies:
            pair.inject(NEAR, from_elsewhere(raw, STRANGER))
        assert pair.arrive([10, 20])
    assert far_of(pair).endpoint == (ip_address(FAR_NODE), PORT)
    assert not [raw for raw in found[NEAR] if raw[30:34] == ip_address(STRANGER).packed]


def test_a_handshake_is_begun_by_wireguard_go(pair: Pair) -> None:
    """It has died; its next one knows no session, and the kernel answers."""
    with wires(pair) as found:
        os.kill(process_of(pair), signal.SIGKILL)
        pair.wait("no way", lambda: "dev am-wg " not in pair.route(FAR_POD[4]))
        pair.from_pod([10] * 5)  # refused by n1: on the wire there is nothing of it
        encrypted(pair, "am-wg")
    assert INITIATION in kinds(found[NEAR])
    assert RESPONSE in kinds(found[FAR])
    for sent in found.values():
        nothing_clear(sent)


def test_strangers(pair: Pair) -> None:
    """A kernel with a key that no node has told gets no answer; n2 gets nothing in, in the name of what it lacks."""
    pair.vm.run("sh -c 'umask 077; wg genkey > /run/stranger'")
    pair.vm.run("ip link add am-stranger type wireguard")
    peer = f"peer {public_text(public_of(control(pair).read().private_key))} endpoint {NEAR_NODE}:{PORT}"
    pair.vm.run(f"wg set am-stranger private-key /run/stranger {peer} persistent-keepalive 1 allowed-ips 192.0.2.1/32")
    try:
        with wires(pair) as found:
            pair.vm.run("ip link set am-stranger up")
            pair.wait(
                "it has tried twice", lambda: int(pair.vm.run("wg show am-stranger transfer").split()[2]) >= 2 * 148
            )
        assert INITIATION in kinds(found[FAR])
        assert pair.vm.run("wg show am-stranger transfer").split()[1] == "0"
        assert pair.vm.run("wg show am-stranger latest-handshakes").split()[1] == "0"
    finally:
        pair.vm.run("ip link del am-stranger")
    pair.vm.run("ip addr add 10.244.78.1 dev lo")
    pair.pod("heard")
    assert pair.from_far([11] * 5, source="10.244.78.1") == [""] * 5
    assert pair.from_far([12]) == [""]
    assert [one["size"] for one in hear(pair.pod, 1)] == [12], "the lies came first, and did not get in"


def test_a_key_changes_under_packets_and_none_is_lost(pair: Pair) -> None:
    """n1's: the new one has a device of its own at both ends, and the pair moves there."""
    old = control(pair).read().private_key
    for end, own, other in (
        (pair.pod, pair.addresses[4], FAR_POD[4]),
        (pair.vm, FAR_POD[4], pair.addresses[4]),
    ):
        end("heard")
        end("stream", source=own, host=other, port=SERVED, pause=0.01)
    try:
        with wires(pair) as found:
            (pair.cluster.folder / NEAR / "state/wireguard/keys.json").unlink()
            pair.settle("both by am-wg2", lambda: pair.taken("am-wg2"))
            time.sleep(1.0)  # of packets by the new way
    finally:
        sent = {end: end("stop") for end in (pair.pod, pair.vm)}
    for sender, receiver in ((pair.pod, pair.vm), (pair.vm, pair.pod)):
        numbers = [one["number"] for one in hear(receiver, sent[sender], 10.0)]
        assert sorted(numbers) == list(range(sent[sender])), "none is lost, none comes twice"
        assert sent[sender] > 100
    assert control(pair, "am-wg2").read().private_key != old
    for frames_of in found.values():
        nothing_clear(frames_of)
    assert "wireguard" in pair.vm.run("ip -d link show am-wg2")
