"""The bytes and lines of WireGuard devices: against pyroute2's reading of the kernel's, and the published protocol."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pyroute2.netlink.generic.wireguard import wgmsg

from linux.netlink import attribute
from linux.wireguard import (
    Change,
    Device,
    Peer,
    PeerChange,
    parse_device,
    parse_lines,
    set_device,
    set_lines,
)

KEY, ONE, TWO = bytes(range(32)), bytes(range(1, 33)), bytes(range(2, 34))
V4 = PeerChange(
    public_key=ONE,
    endpoint=(ip_address("172.30.0.12"), 51820),
    keepalive=25,
    allow=(ip_network("10.244.0.64/26"), ip_network("fd00:10:244::40/122")),
)
V6 = PeerChange(public_key=TWO, endpoint=(ip_address("fd00:172:30::13"), 7), allow=(ip_network("10.9.0.1/32"),))


def decoded(body: bytes) -> Any:
    """The message as pyroute2 reads it (it wants the netlink header before)."""
    message = wgmsg((16 + len(body)).to_bytes(4, "little") + bytes(12) + body)
    message.decode()
    return message


def allowed_of(peer: Any) -> list[str]:
    return [one["addr"] for one in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()]


def test_a_change_of_a_device_as_the_kernels_driver_reads_it() -> None:
    [body] = set_device("am-wg", Change(private_key=KEY, port=51820, peers=(V4, V6)))
    message = decoded(body)
    assert message["cmd"] == 1, "WG_CMD_SET_DEVICE"
    assert message.get_attr("WGDEVICE_A_IFNAME") == "am-wg"
    assert message.get_attr("WGDEVICE_A_PRIVATE_KEY") == b64encode(KEY)
    assert message.get_attr("WGDEVICE_A_LISTEN_PORT") == 51820
    four, six = message.get_attr("WGDEVICE_A_PEERS")
    assert four.get_attr("WGPEER_A_PUBLIC_KEY") == b64encode(ONE)
    endpoint = four.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("172.30.0.12", 51820)
    assert four.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    assert allowed_of(four) == ["10.244.0.64/26", "fd00:10:244::40/122"]
    assert four.get_attr("WGPEER_A_FLAGS") is None
    endpoint = six.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"], allowed_of(six)) == ("fd00:172:30::13", 7, ["10.9.0.1/32"])


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        pytest.param(PeerChange(public_key=ONE, remove=True), 1, id="removed"),
        pytest.param(PeerChange(public_key=ONE, existing=True, keepalive=0), 4, id="only if it is there"),
    ],
)
def test_what_becomes_of_a_peer(change: PeerChange, flags: int) -> None:
    [body] = set_device("am-wg", Change(peers=(change,)))
    [peer] = decoded(body).get_attr("WGDEVICE_A_PEERS")
    assert peer.get_attr("WGPEER_A_FLAGS") == flags
    assert decoded(body).get_attr("WGDEVICE_A_PRIVATE_KEY") is None, "as it is"


def test_what_does_not_fit_into_a_message_goes_on_in_the_next() -> None:
    many = tuple(ip_network(f"fd00:10:244:{number:x}::/64") for number in range(2000))
    peers = tuple(replace(V6, public_key=number.to_bytes(32, "big"), allow=many[:3]) for number in range(1, 300))
    bodies = set_device("am-wg", Change(port=9, peers=(replace(V4, allow=many), *peers)))
    assert len(bodies) > 2
    assert max(map(len, bodies)) < 40_000, "an attribute's length has 16 bits"
    messages = [decoded(body) for body in bodies]
    assert [message.get_attr("WGDEVICE_A_LISTEN_PORT") for message in messages][:2] == [9, None]
    seen = [peer for message in messages for peer in message.get_attr("WGDEVICE_A_PEERS")]
    first = [peer for peer in seen if peer.get_attr("WGPEER_A_PUBLIC_KEY") == b64encode(ONE)]
    assert [one for peer in first for one in allowed_of(peer)] == list(map(str, many))
    assert [peer.get_attr("WGPEER_A_ENDPOINT") is not None for peer in first] == [True] + [False] * (len(first) - 1)
    assert len({peer.get_attr("WGPEER_A_PUBLIC_KEY") for peer in seen}) == 300
    read = parse_device(bodies)
    assert len(read.peers) == 300
    assert read.peers[0].allowed == frozenset(many)


def test_a_device_as_the_kernel_reports_it() -> None:
    """What is set is reported with the same attributes; the times and counters come from the kernel alone."""
    [body] = set_device("am-wg", Change(private_key=KEY, port=51820, peers=(V4,)))
    read = parse_device([body])
    peer = Peer(public_key=ONE, endpoint=V4.endpoint, keepalive=25, allowed=frozenset(V4.allow))
    assert read == Device(private_key=KEY, port=51820, peers=(peer,))
    reported = attribute(1, ONE) + attribute(6, (1700000000).to_bytes(8, "little") + bytes(8))
    reported += attribute(7, (5).to_bytes(8, "little")) + attribute(8, (1 << 40).to_bytes(8, "little"))
    read = parse_device([bytes(4) + attribute(8, attribute(0, reported))])
    assert read.peers == (Peer(public_key=ONE, handshake=1700000000, received=5, sent=1 << 40),)


def test_the_lines_of_the_socket() -> None:
    change = Change(private_key=KEY, port=51820, peers=(V4, V6, PeerChange(public_key=KEY, remove=True)))
    assert list(set_lines(change)) == [
        f"private_key={KEY.hex()}",
        "listen_port=51820",
        f"public_key={ONE.hex()}",
        "endpoint=172.30.0.12:51820",
        "persistent_keepalive_interval=25",
        "allowed_ip=10.244.0.64/26",
        "allowed_ip=fd00:10:244::40/122",
        f"public_key={TWO.hex()}",
        "endpoint=[fd00:172:30::13]:7",
        "allowed_ip=10.9.0.1/32",
        f"public_key={KEY.hex()}",
        "remove=true",
    ]
    update = PeerChange(public_key=ONE, existing=True, allow=(ip_network("10.0.0.1/32"),))
    assert "update_only=true" in set_lines(Change(peers=(update,)))


def test_what_the_socket_reports() -> None:
    words = f"""private_key={KEY.hex()}
listen_port=51820
fwmark=1
public_key={ONE.hex()}
preshared_key={bytes(32).hex()}
protocol_version=1
endpoint=[fe80::1%fab0]:51821
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
tx_bytes=7
rx_bytes=9
persistent_keepalive_interval=25
allowed_ip=10.244.0.64/26
allowed_ip=fd00:10:244::40/122
public_key={TWO.hex()}
last_handshake_time_sec=0
tx_bytes=0
rx_bytes=0"""
    assert parse_lines(words.splitlines()) == Device(
        private_key=KEY,
        port=51820,
        peers=(
            Peer(
                public_key=ONE,
                endpoint=(ip_address("fe80::1"), 51821),
                keepalive=25,
                allowed=frozenset(V4.allow),
                handshake=1700000000,
                received=9,
                sent=7,
            ),
            Peer(public_key=TWO),
        ),
    )
    assert parse_lines(["listen_port=5"]) == Device(port=5), "no key yet"


def test_a_private_key_shows_nowhere() -> None:
    for shown in (repr(Device(private_key=KEY)), repr(Change(private_key=KEY))):
        assert KEY.hex() not in shown
        assert repr(KEY) not in shown
