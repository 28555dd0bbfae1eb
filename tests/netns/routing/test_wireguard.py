"""Two nodes with wireguard-go: pods reach each other encrypted or not at all, and a key changes under packets."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from linux.wireguard import Change, PeerChange, SocketControl
from services.routing.core.wireguard import public_text
from services.routing.wireguard_keys import new_key, public_of
from tests.netns.routing.conftest import Netns
from tests.netns.routing.wireguard_nodes import (
    KEYS,
    Capture,
    Node,
    clear,
    echo,
    kinds,
    process_of,
    proved,
    settle,
    wireguard_frames,
)

pytestmark = pytest.mark.privileged
SECRET = b"nobody on the fabric reads this"


@pytest.fixture
def pair(nodes: tuple[Netns, Netns], tmp_path: Path) -> Iterator[list[Node]]:
    """n11 and n12, whose agents have not run yet."""
    made = [Node(netns, number, tmp_path / f"n{number}") for number, netns in enumerate(nodes, start=11)]
    with ExitStack() as ends:
        for node in made:
            ends.callback(node.end)
            node.lay()
            node.start()
        yield made


def test_pods_reach_each_other_encrypted_by_both_families(pair: list[Node]) -> None:
    n1, n2 = pair
    fabric = Capture(n2)
    settle(pair, lambda: proved(*pair))
    for family in (4, 6):
        echo(n1, n2, family)
        echo(n2, n1, family)
    frames = list(fabric.frames())
    assert wireguard_frames(frames) >= 8
    assert not [frame for frame in frames if clear(frame, b"breath")]
    fabric.close()
    mode = (n1.folder / KEYS).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    shown = n1.netns.ip("-d link show am-wg")
    assert "mtu 1440" in shown
    assert "alias airmesh-tunnel/1 wireguard 172.30.0.11 51820 0" in shown
    assert n1.netns.ip("addr show am-wg").count("inet6 fe80") == 0, "no address of its own that speaks of itself"


def test_wireguard_go_keeps_no_namespace_alive(pair: list[Node]) -> None:
    """It has mounts of its own, in which a pod's namespace would live on when the pod is gone."""
    n1, _ = pair
    n1.apply(pair)
    assert (n1.folder / "sockets" / "am-wg.sock").is_socket()
    mounts = Path(f"/proc/{process_of(n1)}/mountinfo").read_text()
    assert " /var/run/wireguard " in mounts or " /run/wireguard " in mounts
    assert " - nsfs " not in mounts
    assert f"/run/netns/{n1.netns.name} " in Path("/proc/self/mountinfo").read_text(), (
        "where it is mounted all the same"
    )


def test_a_node_reaches_the_others_pods_from_its_own_address(pair: list[Node]) -> None:
    """Its own packets go in by the tunnel, and the answer comes back by it; nodes among themselves stay outside."""
    n1, n2 = pair
    settle(pair, lambda: proved(*pair))
    for number in (0, 1):
        n2.netns.ip(f"route add {n1.underlay[number]} dev am-wg table 99")
        version = n1.underlay[number].version
        n2.netns.ip(f"{'-6 ' if version == 6 else ''}rule add from {n2.pods[number]} lookup 99")
        with n1.socket(address=n1.underlay[number]) as client, n2.socket(version) as server:
            client.sendto(b"breath", server.getsockname())
            text, peer = server.recvfrom(64)
            assert ip_address(peer[0]) == n1.underlay[number]
            server.sendto(text, peer)
            assert client.recv(64) == b"breath"
        assert "dev fab0" in n1.netns.ip(f"route get {n2.underlay[number]}")


def test_nothing_passes_in_the_clear_whatever_is_missing(pair: list[Node]) -> None:
    """Before the start, without agent, process, device, key file: encrypted, or refused at once. The routes by default
    that lead to the other node would carry all of it.
    """
    n1, n2 = pair
    for near, far in ((n1, n2), (n2, n1)):
        near.netns.ip(f"route add default via {far.underlay[0]}")
        near.netns.ip(f"-6 route add default via {far.underlay[1]}")
    fabric = Capture(n2)
    carried: list[bytes] = []

    def sent(*, refused: bool) -> None:
        for family in (4, 6):
            with n1.socket(family) as client, n2.socket(family) as server:
                if refused:
                    with pytest.raises(OSError, match="Permission denied"):
                        client.sendto(SECRET, server.getsockname())
                else:
                    client.sendto(SECRET, server.getsockname())
                    assert server.recv(64) == SECRET
        carried.extend(fabric.frames())

    sent(refused=True)
    n1.apply(pair)
    sent(refused=True)
    settle(pair, lambda: proved(*pair))
    sent(refused=False)
    n1.kill()
    sent(refused=False)
    os.kill(process_of(n1), signal.SIGKILL)
    settle([n2], lambda: not n1.links())
    sent(refused=True)
    n1.start()
    settle(pair, lambda: proved(*pair) and n1.state.slots)
    sent(refused=False)
    n1.netns.ip("link del am-wg")
    sent(refused=True)
    n1.kill()
    (n1.folder / KEYS).unlink()
    sent(refused=True)
    n1.start()
    settle(pair, lambda: proved(*pair) and n1.state.slots)
    sent(refused=False)
    assert not [frame for frame in carried if clear(frame, SECRET)]
    assert wireguard_frames(carried) > 8
    fabric.close()


def test_a_key_changes_under_packets_and_none_is_lost(pair: list[Node]) -> None:
    n1, n2 = pair
    settle(pair, lambda: proved(*pair))
    old = n1.state.mine[0].key
    fabric = Capture(n2)
    stop = threading.Event()
    sent: dict[str, int] = {}
    with ExitStack() as opened:
        ends = {node.name: opened.enter_context(node.socket()) for node in pair}
        for end in ends.values():
            end.setsockopt(1, 33, 8 << 20)  # SO_RCVBUFFORCE

        def stream(name: str, to: str) -> None:
            """Some 500 packets a second until the key has changed."""
            count = 0
            while not stop.is_set():
                ends[name].sendto(count.to_bytes(4, "big") + SECRET, ends[to].getsockname())
                count += 1
                time.sleep(0.002)
            sent[name] = count

        threads = [threading.Thread(target=stream, args=names) for names in (("n11", "n12"), ("n12", "n11"))]
        for thread in threads:
            thread.start()
        (n1.folder / KEYS).unlink()
        try:
            settle(pair, lambda: [key.state for key in n1.state.mine] == ["home"] and n1.state.mine[0].slot == 1)
            settle(pair, lambda: list(n1.links()) == ["am-wg2"] and not n2.read(0).peers)  # type: ignore[union-attr]
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
        for name, other in (("n11", "n12"), ("n12", "n11")):
            ends[other].settimeout(20)
            numbers = [int.from_bytes(ends[other].recv(64)[:4], "big") for _ in range(sent[name])]
            assert sorted(numbers) == list(range(sent[name])), "none is lost, none comes twice"
            assert sent[name] > 50
    assert n1.state.mine[0].key != old
    assert list(n1.links()) == ["am-wg2"], "the old key is forgotten, with its device"
    devices = [n2.read(slot) for slot in (0, 1)]
    peers = [{public_text(peer.public_key) for peer in device.peers} for device in devices if device is not None]
    assert peers == [set(), {n1.state.mine[0].key}], "and nobody takes it any more"
    assert not [frame for frame in fabric.frames() if clear(frame, SECRET)]
    fabric.close()


def test_a_stranger_and_another_nodes_addresses_are_refused(pair: list[Node]) -> None:
    """A key that nobody carried is not answered; a node that is known gets nothing in, in the name of what it lacks."""
    n1, n2 = pair
    settle(pair, lambda: proved(*pair))
    stolen = ip_network("10.244.99.7/32")
    n1.netns.ip(f"addr add {stolen} dev lo")
    with n1.socket(address=stolen[0]) as liar, n2.socket() as server, n1.socket() as honest:
        liar.sendto(b"in another's name", server.getsockname())
        honest.sendto(b"mine", server.getsockname())
        assert server.recv(64) == b"mine", "the liar's came first, and did not get in"
    control = SocketControl(n1.folder / "sockets" / "am-wg.sock")
    [me] = n2.read().peers  # type: ignore[union-attr]
    control.apply(Change(private_key=new_key()))
    key = public_of(control.read().private_key)
    assert key != me.public_key
    [peer] = control.read().peers
    control.apply(Change(peers=(PeerChange(public_key=peer.public_key, remove=True),)))
    allow = tuple(peer.allowed)
    stranger = PeerChange(public_key=peer.public_key, endpoint=peer.endpoint, keepalive=1, allow=allow)
    fabric = Capture(n2)
    control.apply(Change(peers=(stranger,)))
    arrived: list[bytes] = []

    def tried() -> bool:
        arrived.extend(fabric.frames())
        return 1 in kinds(arrived)

    settle([n2], tried)
    n2.apply(pair)
    assert control.read().peers[0].handshake == 0
    assert kinds([*arrived, *fabric.frames()]).count(2) == 0, "no answer to who is not known"
    fabric.close()


def test_a_change_of_one_peer_costs_that_peer_alone(pair: list[Node]) -> None:
    """A block that is taken away goes without a moment in which the others of that node are nobody's."""
    n1, n2 = pair
    settle(pair, lambda: proved(*pair))
    before = n1.read()
    assert before is not None
    more = ip_network("10.244.12.64/26")
    real = type(n2).blocks
    try:
        type(n2).blocks = property(lambda self: (*real.fget(self), more) if self is n2 else real.fget(self))  # type: ignore
        n1.apply(pair)
        assert more in n1.read().peers[0].allowed  # type: ignore[union-attr]
    finally:
        type(n2).blocks = real  # type: ignore[method-assign]
    n1.apply(pair)
    after = n1.read()
    assert after is not None
    assert [replace(peer, sent=0, received=0, handshake=0) for peer in after.peers] == [
        replace(peer, sent=0, received=0, handshake=0) for peer in before.peers
    ]
    assert after.peers[0].handshake == before.peers[0].handshake, "its session stays"
