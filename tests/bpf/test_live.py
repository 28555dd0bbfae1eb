"""The programs at work between real namespaces: attached, replaced, detached by hand, left alone."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from linux import bpf
from proto.flow import DropReason
from proto.policy import Direction, PortMatch, Verdict
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.datapath.hooks import ENDPOINT_HOOKS, UPLINK_HOOKS
from services.dataplane.datapath.programs import Datapath, LinkState, NotBpffs
from tests.bpf import frames
from tests.bpf.live import UPLINK, LiveNode, attach, fill, live_node, opened, two_nodes
from tests.bpf.world import PeerKind, Rule, ifindex_of, inside, run, scope_number, write_rules

pytestmark = pytest.mark.privileged


@pytest.fixture
def node() -> Iterator[LiveNode]:
    with live_node("live") as built:
        yield built


@pytest.fixture
def datapath(folder: Path, cache: Path, node: LiveNode, way: bool) -> Iterator[Datapath]:
    built = opened(folder, cache, node, tcx=way)
    fill(built, node)
    attach(built, node)
    yield built
    built.close()


NEVER = 0.4
"""Seconds after which what is not answered is forbidden."""


def talks(node: LiveNode, version: int, kind: int = socket.SOCK_STREAM, seconds: float = 20.0) -> bool:
    """Whether a gets an answer from b."""
    with node.b.socket(version, kind) as server, node.a.socket(version, kind) as client:
        server.settimeout(seconds)
        client.settimeout(seconds)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((str(node.b.address(version)), 7000))
        try:
            if kind == socket.SOCK_DGRAM:
                client.sendto(b"ping", (str(node.b.address(version)), 7000))
                _, peer = server.recvfrom(10)
                server.sendto(b"pong", peer)
                return client.recv(10) == b"pong"
            server.listen()
            client.connect((str(node.b.address(version)), 7000))
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"pong")
                return client.recv(10) == b"pong"
        except TimeoutError:
            return False


def isolate(datapath: Datapath, identity: int, *, ingress: bool = False, egress: bool = False) -> None:
    scope = scope_number(identity, Direction.INGRESS)
    entry = pl.Subject(ingress=scope, ingress_isolated=ingress, egress_isolated=egress)
    datapath.tables.subjects.put(pl.SubjectKey(identity=identity), entry)
    datapath.tables.bump_generation()


@pytest.mark.parametrize("version", [4, 6])
def test_pods_talk_until_policy_says_no(node: LiveNode, datapath: Datapath, version: int) -> None:
    assert talks(node, version)
    assert talks(node, version, socket.SOCK_DGRAM)
    isolate(datapath, node.b.identity, ingress=True)
    assert not talks(node, version, seconds=NEVER)
    assert datapath.tables.metrics()[DropReason.POLICY_DENIED, Direction.INGRESS].packets > 0


@pytest.mark.parametrize("version", [4, 6])
def test_node_reaches_its_isolated_pod(node: LiveNode, datapath: Datapath, version: int) -> None:
    isolate(datapath, node.b.identity, ingress=True)
    address = str(node.b.address(version))
    with node.b.socket(version, socket.SOCK_STREAM) as server, inside(node.netns):
        server.bind((address, 7000))
        server.listen()
        own = "172.30.0.11" if version == 4 else "fd00:172:30::11"
        with socket.create_connection((address, 7000), 1, source_address=(own, 0)) as client:
            assert client.getpeername()[0] == address


def test_links_show_where_they_hang(node: LiveNode, datapath: Datapath) -> None:
    with inside(node.netns):
        links = datapath.links()
    assert {name: state.ifindex for name, state in links.items()} == {
        node.a.device: node.a.ifindex,
        node.b.device: node.b.ifindex,
    }
    assert all(state.attached and set(state.hooks) == set(ENDPOINT_HOOKS) for state in links.values())


def test_everything_stays_when_the_agent_goes(node: LiveNode, folder: Path, cache: Path, way: bool) -> None:
    first = opened(folder, cache, node, tcx=way)
    fill(first, node)
    attach(first, node)
    before = links_of(first, node)
    first.close()
    assert talks(node, 4)
    again = opened(folder, cache, node, tcx=way)
    assert {key.endpoint for key in again.tables.budgets.items()} == {1, 2}
    assert len(again.tables.flows.items()) == 2
    after = links_of(again, node)
    assert after.keys() == before.keys()
    assert all(not set(after[name].programs) & set(before[name].programs) for name in after), "old programs still run"
    assert talks(node, 4)
    again.close()


def links_of(datapath: Datapath, node: LiveNode) -> dict[str, LinkState]:
    with inside(node.netns):
        return datapath.links()


def test_detach_leaves_nothing(node: LiveNode, datapath: Datapath, way: bool) -> None:
    with inside(node.netns):
        datapath.detach(node.a.device)
        datapath.detach(node.a.device)
        assert set(datapath.links()) == {node.b.device}
        if way:
            assert bpf.query(node.a.ifindex, bpf.AttachKind.TCX_INGRESS) == ()
    filters = run("nsenter", f"--net=/run/netns/{node.netns}", "tc", "filter", "show", "dev", node.a.device, "ingress")
    assert "from_pod" not in filters


def test_link_taken_off_by_hand_is_noticed_and_mended(
    node: LiveNode, datapath: Datapath, folder: Path, way: bool
) -> None:
    if way:
        pin = next(folder.glob(f"v*/links/{node.a.device}/from_pod"))
        link = bpf.pinned(pin)
        bpf.link_detach(link)
        os.close(link)
    else:
        run("nsenter", f"--net=/run/netns/{node.netns}", "tc", "qdisc", "del", "dev", node.a.device, "clsact")
    with inside(node.netns):
        state = datapath.links()[node.a.device]
        assert (state.attached, state.ifindex) == (False, 0)
        datapath.attach_endpoint(node.a.ifindex, node.a.device)
        state = datapath.links()[node.a.device]
        assert (state.attached, state.ifindex) == (True, node.a.ifindex)
    isolate(datapath, node.b.identity, ingress=True)
    assert not talks(node, 4, seconds=NEVER)


def test_device_that_went_is_noticed(node: LiveNode, datapath: Datapath) -> None:
    run("ip", "-n", node.netns, "link", "del", node.a.device)
    with inside(node.netns):
        assert not datapath.links()[node.a.device].attached
        datapath.detach(node.a.device)
        assert set(datapath.links()) == {node.b.device}


def test_attaching_is_idempotent(node: LiveNode, datapath: Datapath, way: bool) -> None:
    attach(datapath, node)
    attach(datapath, node)
    with inside(node.netns):
        if way:
            assert len(bpf.query(node.a.ifindex, bpf.AttachKind.TCX_INGRESS)) == 1
        with pytest.raises(OSError, match="No such device"):
            datapath.attach_endpoint(4242, "am-none")


def test_name_with_a_dot(node: LiveNode, datapath: Datapath) -> None:
    with inside(node.netns):
        datapath.attach_uplink(node.a.ifindex, "eth0.100")
        assert datapath.links()["eth0.100"].hooks == UPLINK_HOOKS
        datapath.detach("eth0.100")


def flood(node: LiveNode, stop: threading.Event, counts: list[int]) -> None:
    with node.a.socket(4, socket.SOCK_DGRAM) as sender:
        sender.connect((str(node.b.address(4)), 7000))
        number = 0
        while not stop.is_set():
            sender.send(number.to_bytes(8, "big"))
            number += 1
            if number % 64 == 0:
                stop.wait(0.001)
        counts.append(number)


@pytest.mark.parametrize("denied_by", ["nobody", "receiver", "sender"])
def test_replaced_under_traffic(node: LiveNode, datapath: Datapath, denied_by: str) -> None:
    """Nothing is lost that may pass; nothing leaks that the receiver's policy (two programs judge it) or the sender's
    (its own alone does) forbids.
    """
    isolate(datapath, node.b.identity, ingress=denied_by == "receiver")
    isolate(datapath, node.a.identity, egress=denied_by == "sender")
    stop = threading.Event()
    counts: list[int] = []
    with node.b.socket(4, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        receiver.bind((str(node.b.address(4)), 7000))
        sender = threading.Thread(target=flood, args=(node, stop, counts))
        sender.start()
        with inside(node.netns):
            for _ in range(300):
                datapath._refresh()
        stop.set()
        sender.join()
        receiver.setblocking(False)
        received = 0
        while True:
            try:
                receiver.recv(100)
            except BlockingIOError:
                break
            received += 1
    assert counts[0] > 300
    assert received == (counts[0] if denied_by == "nobody" else 0)


def test_frames_cut_within_the_ip_header(node: LiveNode, datapath: Datapath) -> None:
    with inside(node.a.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        whole4 = frames.ip("10.244.1.1", "10.244.1.2", 17, frames.udp(1, 2))
        whole6 = frames.ip("fd00:10:244:1::1", "fd00:10:244:1::2", 17, frames.udp(1, 2))
        for packet, kind in ((whole4[:1], 0x0800), (whole4[:12], 0x0800), (whole6[:30], 0x86DD)):
            raw.send(frames.eth(packet, source=node.a.mac, kind=kind))
    assert datapath.tables.metrics()[DropReason.MALFORMED, Direction.EGRESS].packets == 3


def send_scattered(raw: socket.socket, frame: bytes) -> None:
    """Sends from a ring (packet(7), PACKET_TX_RING): only the Ethernet header lies in the packet's own memory."""
    raw.setsockopt(263, 13, struct.pack("<4I", 4096, 1, 4096, 1))
    with mmap.mmap(raw.fileno(), 4096) as ring:
        ring[32 : 32 + len(frame)] = frame
        ring[:16] = struct.pack("<QII", 1, len(frame), len(frame))
        assert raw.send(b"") == len(frame)


@pytest.mark.parametrize("version", [4, 6])
def test_packet_that_does_not_lie_in_one_piece(node: LiveNode, datapath: Datapath, version: int) -> None:
    isolate(datapath, node.b.identity, ingress=True)
    rule = Rule(node.b.identity, Direction.INGRESS, PeerKind.ANY, 0, PortMatch(17, 7000, 16), 1, Verdict.ALLOW, 0)
    write_rules(datapath.tables, rule.subject, rule.direction, [rule])
    before = datapath.tables.metrics()
    for port in (7000, 7000, 7001):
        packet = frames.ip(str(node.a.address(version)), str(node.b.address(version)), 17, frames.udp(4000, port))
        with inside(node.a.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            send_scattered(raw, frames.eth(packet, source=node.a.mac, kind=0x0800 if version == 4 else 0x86DD))
    none = at.Metric(packets=0, bytes=0)
    assert {
        (reason.name, side.name): metric.packets - before.get((reason, side), none).packets
        for (reason, side), metric in datapath.tables.metrics().items()
        if reason in (DropReason.FORWARDED, DropReason.POLICY_DENIED, DropReason.MALFORMED)
    } == {("FORWARDED", "EGRESS"): 3, ("FORWARDED", "INGRESS"): 2, ("POLICY_DENIED", "INGRESS"): 1}


def test_vlan_tag_is_no_way_round(node: LiveNode, datapath: Datapath) -> None:
    with inside(node.a.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        packet = frames.ip("10.244.1.1", "10.244.1.2", 17, frames.udp(1, 2))
        raw.send(frames.eth(b"\x00\x05\x08\x00" + packet, source=node.a.mac, kind=0x8100))
    assert datapath.tables.metrics()[DropReason.NOT_IP, Direction.EGRESS].packets == 1
    assert datapath.tables.flows.items() == {}


def test_folder_that_is_not_bpffs(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(NotBpffs, match="mount -t bpf"):
        Datapath.open(tmp_path / "pins", cache)


def test_what_hangs_stays_as_it_hangs(node: LiveNode, folder: Path, cache: Path) -> None:
    """An agent that would hang programs otherwise takes over what is there, in both directions."""
    pins = {True: {"from_pod", "to_pod"}, False: {f"{hook.value}-{node.a.ifindex}" for hook in ENDPOINT_HOOKS}}
    for way, half in ((True, "one"), (False, "other")):
        first = opened(folder / half, cache, node, tcx=way)
        fill(first, node)
        attach(first, node)
        first.close()
        second = opened(folder / half, cache, node, tcx=not way)
        attach(second, node)
        kept = {pin.name for pin in (second._links / node.a.device).iterdir()}
        assert kept == pins[way]
        assert talks(node, 4)
        with inside(node.netns):
            assert {state.attached for state in second.links().values()} == {True}
            for pod in (node.a, node.b):
                second.detach(pod.device)
        second.close()


@pytest.mark.parametrize("filter_pods", [True, False])
def test_pods_by_filters_beside_an_uplink_by_links(
    node: LiveNode, folder: Path, cache: Path, filter_pods: bool
) -> None:
    with inside(node.netns):
        run("ip", "-n", node.netns, "link", "add", UPLINK, "type", "veth", "peer", "name", "am-peer")
        datapath = Datapath.open(folder, cache, tcx=True, filter_pods=filter_pods)
    fill(datapath, node)
    attach(datapath, node)
    with inside(node.netns):
        datapath.attach_uplink(ifindex_of(node.netns, UPLINK), UPLINK)
    listed = run("tc", "-n", node.netns, "filter", "show", "dev", node.a.device, "ingress")
    assert ("from_pod" in listed) == filter_pods
    assert "from_wire" not in run("tc", "-n", node.netns, "filter", "show", "dev", UPLINK, "ingress")
    with inside(node.netns):
        hanging = {name: state.attached for name, state in datapath.links().items()}
    assert hanging == dict.fromkeys((node.a.device, node.b.device, UPLINK), True)
    assert talks(node, 6)
    datapath.close()


@pytest.mark.parametrize("way", [True, False], ids=["tcx", "clsact"])
def test_across_two_nodes(folder: Path, cache: Path, way: bool) -> None:
    with two_nodes() as (one, other):
        first = opened(folder / "one", cache, one, tcx=way)
        second = opened(folder / "other", cache, other, tcx=way)
        for datapath, node, pod in ((first, one, one.a), (second, other, other.b)):
            fill(datapath, node, local=(pod.number,))
            with inside(node.netns):
                datapath.attach_endpoint(pod.ifindex, pod.device)
                datapath.attach_uplink(ifindex_of(node.netns, UPLINK), UPLINK)
        for version in (4, 6):
            assert talks(one, version), (first.tables.metrics(), second.tables.metrics())
            assert talks(one, version, socket.SOCK_DGRAM)
        sides = [{flow.side for flow in datapath.tables.flows.items().values()} for datapath in (first, second)]
        assert sides == [{Direction.EGRESS}, {Direction.INGRESS}]
        # Replies come by the uplink's program, past the stack: the pod's own link sees none of them.
        replies = first.tables.metrics()[DropReason.REPLY, Direction.INGRESS]
        assert replies.packets > 4
        isolate(second, other.b.identity, ingress=True)
        assert not talks(one, 4, seconds=NEVER)
        isolate(second, other.b.identity, ingress=False)
        assert talks(one, 4)
        isolate(first, one.a.identity, ingress=True)
        assert talks(one, 6)
        first.close()
        second.close()


def test_a_table_grows_under_flows_that_go_on(node: LiveNode, datapath: Datapath, folder: Path, way: bool) -> None:
    """Maps of the agent and of the programs are replaced by larger ones while 4 connections talk: none misses a byte, a
    flow that policy would not let begin goes on, and a pin of the old size is not there any more.
    """
    with ExitStack() as stack:
        server = stack.enter_context(node.b.socket(4, socket.SOCK_STREAM))
        server.settimeout(20)
        server.bind((str(node.b.address(4)), 7000))
        server.listen()
        pairs = []
        for _ in range(4):
            client = stack.enter_context(node.a.socket(4, socket.SOCK_STREAM))
            client.settimeout(20)
            client.connect((str(node.b.address(4)), 7000))
            accepted = stack.enter_context(server.accept()[0])
            accepted.settimeout(20)
            pairs.append((client, accepted))
        # a may not be asked anything: only as answers of a flow that is known do b's packets reach it.
        isolate(datapath, node.a.identity, ingress=True)
        stop, lost = threading.Event(), []

        def talk() -> None:
            half = 0
            while not stop.is_set():
                for client, accepted in pairs:
                    half += 1
                    word = half.to_bytes(8, "big")
                    try:
                        client.sendall(word)
                        accepted.sendall(accepted.recv(8))
                        if client.recv(8) != word:
                            lost.append(half)
                    except TimeoutError:
                        lost.append(half)

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            before, known = datapath.tables.flows.items(), datapath.tables.ipcache.items()
            sizes = {"am_ipcache": 1 << 20, "am_ct": 1 << 18, "am_ct_budget": 8192, "am_services": 1 << 17}
            sizes |= {"am_scope_peer": 1 << 20, "am_scope_port": 1 << 19, "am_scope_rule": 1 << 18}
            sizes |= {"am_selected": 1 << 18, "am_cidrs": 1 << 19}
            with inside(node.netns):
                assert set(datapath.grow(sizes)) == set(sizes)
                assert datapath.grow(sizes) == ()
            assert known
            assert datapath.tables.ipcache.items() == known, "what the agent alone writes is copied, too"
            assert len(before) == 8
            assert before.keys() <= datapath.tables.flows.items().keys()
            datapath.tables.bump_generation()
            threading.Event().wait(0.3)
        finally:
            stop.set()
            talking.join()
        assert lost == []
    assert {name: datapath.tables.by_name[name].entries for name in sizes} == sizes
    for name, entries in sizes.items():
        (pin,) = folder.glob(f"v*/maps/{name}-*")
        fd = bpf.pinned(pin)
        assert bpf.map_info(fd).entries == entries
        os.close(fd)
    assert not list(folder.glob("v*/maps/*-new"))
    after = links_of(datapath, node)
    assert all(state.attached for state in after.values())
    assert not talks_from_b(node)


def talks_from_b(node: LiveNode) -> bool:
    """Whether b reaches a, which is isolated."""
    return talks(replace(node, a=node.b, b=node.a), 4, seconds=NEVER)


def test_what_a_map_became_it_stays(node: LiveNode, folder: Path, cache: Path) -> None:
    """Also for an agent that asks for less, and one that asks for more at its start brings the flows along."""
    first = opened(folder, cache, node)
    fill(first, node)
    attach(first, node)
    with inside(node.netns):
        first.grow({"am_services": 1 << 17})
    assert talks(node, 4)
    flows = first.tables.flows.items()
    first.close()
    with inside(node.netns):
        again = Datapath.open(folder, cache, sizes={"am_services": 4096, "am_ct": 1 << 18})
    assert again.tables.services.entries == 1 << 17
    assert again.tables.flows.entries == 1 << 18
    assert again.tables.flows.items().keys() == flows.keys()
    assert talks(node, 4)
    again.close()


def test_without_memory_nothing_has_changed(node: LiveNode, datapath: Datapath) -> None:
    before = links_of(datapath, node)
    with inside(node.netns), pytest.raises(bpf.BpfError):
        datapath.grow({"am_services": 1 << 17, "am_ct": (1 << 32) - 1})
    assert links_of(datapath, node) == before
    assert datapath.tables.services.entries == 65_536
    assert talks(node, 4)
