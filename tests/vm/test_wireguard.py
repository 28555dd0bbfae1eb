"""WireGuard against the kernel's own driver: wireguard-go on n1, and on n2 `routing` itself with another kernel.

Both agents are the real ones. n2's runs in the VM, with the bus over the wire and the driver by generic netlink.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network

import pytest

from linux.wireguard import Peer, SocketControl
from proto.objects import FelixConfiguration
from services.routing.core.wireguard import public_text
from tests.bpf.test_tunnels_live import captured
from tests.drills.minicluster import HUB
from tests.netns.routing.wireguard_nodes import clear, kinds
from tests.vm.conftest import FAR, FAR_POD, NEAR, SERVED, UNDERLAY, Ends, hear, matching

pytestmark = [pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(900)]

HERE, THERE = UNDERLAY[NEAR][0], UNDERLAY[FAR][0]
PORT = 51820
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
