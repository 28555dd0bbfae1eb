"""WireGuard against the kernel's own driver: wireguard-go on n1, and on n2 `routing` itself with another kernel.

Both agents are the real ones. n2's runs in the VM, with the bus over the wire and the driver by generic netlink.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from linux.wireguard import Peer, SocketControl
from proto.objects import FelixConfiguration
from services.routing.core.wireguard import public_text
from services.routing.wireguard_keys import public_of
from tests.bpf import frames
from tests.bpf.test_tunnels_live import captured
from tests.bpf.world import run
from tests.drills.minicluster import HUB
from tests.netns.routing.wireguard_nodes import clear, kinds
from tests.vm.conftest import FAR, FAR_POD, NEAR, SERVED, UNDERLAY, Ends, hear, matching

pytestmark = [pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1500)]

HERE, THERE = UNDERLAY[NEAR][0], UNDERLAY[FAR][0]
PORT = 51820
STRANGER = "172.30.0.99"
FITS = {4: 1440 - 28, 6: 1440 - 48}
"""Payload of the longest datagram in the tunnel, which is over IPv4."""
MEGABYTES = 4 << 20
STATE, LOG = "/run/airmesh", "/run/routing.log"
INITIATION, RESPONSE, TRANSPORT = 1, 2, 4
"""Types of WireGuard's messages."""


@pytest.fixture(scope="module")
def pair(ends: Ends) -> Iterator[Ends]:
    """Encryption is asked for in both families, and `routing` runs on n2."""
    environment = {
        **ends.cluster.nats.environment(f"routing-{FAR}"),
        "AIRMESH_NATS_URL": f"nats://{HUB}:{ends.cluster.nats.port}",
        "AIRMESH_NODE": FAR,
        "AIRMESH_UPLINKS": "eth0",
        "AIRMESH_STATE_DIR": STATE,
        "AIRMESH_INSTANCE": f"routing-{FAR}",
    }
    ends.put(FelixConfiguration(name="default", wireguard_enabled=True, wireguard_enabled_v6=True))
    supervised = ["sh", "-c", 'while :; do "$0" -m services.routing; sleep 1; done', sys.executable]
    ends.vm("start", words=supervised, environment=environment, log=LOG)
    try:
        encrypted(ends, "am-wg")
        yield ends
    except AssertionError:
        print(ends.vm.run(f"tail -c 6000 {LOG}"))
        raise


def encrypted(ends: Ends, device: str) -> None:
    """Waits until both nodes lead by this device, and packets pass both ways."""
    for version in (4, 6):
        ends.wait("n1's way", lambda: f"dev {device} " in ends.route(FAR_POD[version]), 240)  # noqa: B023
        there = f"ip {matching(ends.addresses[version])}"
        ends.wait("n2's way", lambda: f"dev {device} " in ends.vm.run(there), 240)  # noqa: B023
        ends.wait("packets by it", lambda: ends.arrive([10], version))  # noqa: B023


def control(ends: Ends, device: str = "am-wg") -> SocketControl:
    """n1's wireguard-go."""
    return SocketControl(ends.cluster.folder / NEAR / "sockets" / f"{device}.sock")


def far_of(ends: Ends) -> Peer:
    """n2 as n1's device has it."""
    [peer] = control(ends).read().peers
    return peer


@contextmanager
def wires(ends: Ends) -> Iterator[dict[str, list[bytes]]]:
    """Frames that each node sends meanwhile, by node."""
    with ExitStack() as stack:
        yield {node: stack.enter_context(captured(ends.cluster.label, f"to-{node}")) for node in (NEAR, FAR)}


def nothing_clear(found: list[bytes]) -> None:
    """No frame shows a pod's address."""
    assert not [raw for raw in found if raw[12:14] in (b"\x08\x00", b"\x86\xdd") and clear(raw, b"\0never sent\0")]


def test_the_driver_is_the_kernel_s_and_has_what_routing_says(pair: Ends) -> None:
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
    assert {f"{HERE}/32", f"{UNDERLAY[NEAR][1]}/128"} < set(allowed)
    assert any(ip_address(pair.addresses[4]) in network for network in map(ip_network, allowed[1:]))
    assert pair.vm.run(f"stat -c %a {STATE}/wireguard/keys.json").strip() == "600"


def test_all_of_both_families_is_encrypted(pair: Ends) -> None:
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
def test_datagrams_around_the_mtu(pair: Ends, version: int) -> None:
    fits = FITS[version]
    sizes = [1, fits - 21, fits - 20, fits - 19, fits - 1, fits, fits + 1, 1500, 3000]
    with wires(pair) as found:
        for send, end in ((pair.from_pod, pair.vm), (pair.from_far, pair.pod)):
            assert send(sizes, version) == [""] * len(sizes)
            assert [(one["size"], one["whole"]) for one in hear(end, len(sizes))] == [(size, True) for size in sizes]
    for sent in found.values():
        nothing_clear(sent)
        assert max(map(len, sent)) <= 1514
    assert pair.from_far([fits + 1], version, df=True) == ["Message too long"]
    assert pair.from_pod([fits - 19], version, df=True) == ["Message too long"], (
        "the pod's link is that of any outer family"
    )
    assert pair.from_pod([fits - 20], version, df=True) == [""]
    assert [one["size"] for one in hear(pair.vm, 1)] == [fits - 20]


def process_of(ends: Ends, device: str = "am-wg") -> int:
    """Process id of n1's wireguard-go."""
    for pid in run("ip", "netns", "pids", ends.node).split():
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


def test_a_handshake_is_begun_by_the_kernel_and_copies_of_it_move_nothing(pair: Ends) -> None:
    """n2 has forgotten its sessions. What is played back from another address is neither answered nor roaming."""
    with wires(pair) as found:
        pair.vm.run("ip link set am-wg down")
        pair.vm.run("ip link set am-wg up")
        pair.vm("heard")
        pair.pod("heard")
        pair.wait("packets again", lambda: pair.from_far([10]) == [""] and hear(pair.pod, 1, 1.0), 240)
    assert INITIATION in kinds(found[FAR])
    assert RESPONSE in kinds(found[NEAR])
    copies = [raw for raw in found[FAR] if kinds([raw])]
    assert far_of(pair).endpoint == (ip_address(THERE), PORT)
    with wires(pair) as found:
        for raw in copies:
            pair.inject(NEAR, from_elsewhere(raw, STRANGER))
        assert pair.arrive([10, 20])
    assert far_of(pair).endpoint == (ip_address(THERE), PORT)
    assert not [raw for raw in found[NEAR] if raw[30:34] == ip_address(STRANGER).packed]


def test_a_handshake_is_begun_by_wireguard_go(pair: Ends) -> None:
    """It has died; its next one knows no session, and the kernel answers."""
    with wires(pair) as found:
        os.kill(process_of(pair), signal.SIGKILL)
        pair.wait("no way", lambda: "dev am-wg " not in pair.route(FAR_POD[4]))
        assert pair.from_pod([10]) != [""], "refused, and not sent in the clear"
        encrypted(pair, "am-wg")
    assert INITIATION in kinds(found[NEAR])
    assert RESPONSE in kinds(found[FAR])
    for sent in found.values():
        nothing_clear(sent)


def test_strangers(pair: Ends) -> None:
    """A kernel with a key that no node has told gets no answer; n2 gets nothing in, in the name of what it lacks."""
    pair.vm.run("sh -c 'umask 077; wg genkey > /run/stranger'")
    pair.vm.run("ip link add am-stranger type wireguard")
    peer = f"peer {public_text(public_of(control(pair).read().private_key))} endpoint {HERE}:{PORT}"
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


def test_a_key_changes_under_packets_and_none_is_lost(pair: Ends) -> None:
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
            pair.wait("n1's way", lambda: "dev am-wg2 " in pair.route(FAR_POD[4]), 300)
            pair.wait("n2's way", lambda: "dev am-wg2 " in pair.vm.run(f"ip {matching(pair.addresses[4])}"), 300)
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
