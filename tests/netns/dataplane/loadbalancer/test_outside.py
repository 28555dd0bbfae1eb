"""Services from outside with real sockets: a client behind a router, two nodes, pods, and links of several widths."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from proto.findings import DoctorRequest
from proto.flow import DropReason
from proto.objects import Service, ServicePort
from proto.policy import Direction, PortMatch, Verdict
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.service_layout import ServiceFlag
from services.dataplane.doctor.affinity import AffinityDoctor
from tests.bpf.conftest import CACHE
from tests.bpf.frontends import PROTOCOLS
from tests.bpf.world import PeerKind, Rule, bpffs, run, scope_number, write_rules
from tests.golden.proto.samples import sample_of
from tests.netns.dataplane.loadbalancer.outside import (
    CLIENT,
    ONE,
    OTHER,
    PORT,
    TARGET,
    UPLINK,
    VIP,
    Town,
    end,
    opened,
    town,
)

pytestmark = pytest.mark.privileged

FAMILIES = pytest.mark.parametrize("version", [4, 6])
BOTH = pytest.mark.parametrize("kind", ["tcp", "udp"])
WHERE = pytest.mark.parametrize("where", ["pod", "node", "elsewhere", "other node"])


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with (
        bpffs(tmp_path_factory.mktemp("outside") / "bpffs") as pins,
        town(pins, CACHE, tcx=request.param == "tcx") as made,
    ):
        yield made


def backend(site: Town, where: str, version: int) -> tuple[str, str]:
    """Its address, and what it answers to the client."""
    mine, seen = CLIENT[version], ONE[version]
    return {
        "pod": (site.pod(1, version), f"pod1 {mine}"),
        "node": (ONE[version], f"one {mine}"),
        "elsewhere": (site.pod(3, version), f"pod3 {seen}"),
        "other node": (OTHER[version], f"other {seen}"),
    }[where]


def sent_again(connection: socket.socket) -> int:
    """Segments that TCP sent more than once: tcpi_total_retrans, at octet 100 of struct tcp_info (linux/tcp.h)."""
    reported = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", reported, 100)[0])


def drops(site: Town, reason: DropReason) -> int:
    metric = site.datapaths[site.one].tables.metrics().get((reason, Direction.INGRESS))
    return metric.packets if metric else 0


@FAMILIES
@BOTH
class TestAnswers:
    @WHERE
    def test_from_a_backend(self, site: Town, version: int, kind: str, where: str) -> None:
        address, answer = backend(site, where, version)
        site.serve(version, kind, address)
        assert site.ask(version, kind) == answer
        assert site.ask(version, kind) == answer

    @WHERE
    def test_by_an_address_that_is_not_the_nodes(self, site: Town, version: int, kind: str, where: str) -> None:
        address, answer = backend(site, where, version)
        site.serve(version, kind, address, frontend=VIP[version], flags=ServiceFlag.FOREIGN)
        assert site.ask(version, kind, address=VIP[version]) == answer

    def test_to_a_pod_elsewhere(self, site: Town, version: int, kind: str) -> None:
        caller = site.pods[3].netns
        site.serve(version, kind, site.pod(1, version))
        assert site.ask(version, kind, netns=caller) == f"pod1 {site.pod(3, version)}"
        site.serve(version, kind, site.pod(3, version))
        assert site.ask(version, kind, netns=caller) == f"pod3 {ONE[version]}"

    def test_first_packet_waits_for_an_unknown_neighbour(self, site: Town, version: int, kind: str) -> None:
        site.serve(version, kind, site.pod(3, version))
        run("ip", "-n", site.one, "neigh", "flush", "dev", UPLINK)
        assert site.ask(version, kind, seconds=0.9) == f"pod3 {ONE[version]}"

    def test_client_keeps_its_backend(self, site: Town, version: int, kind: str) -> None:
        both = site.pod(1, version), site.pod(2, version)
        site.serve(version, kind, *both, affinity=60)
        assert len({site.ask(version, kind) for _ in range(12)}) == 1
        site.serve(version, kind, *both)
        assert len({site.ask(version, kind) for _ in range(24)}) == 2

    def test_the_doctor_counts_clients_and_the_flows_of_one_address(self, site: Town, version: int, kind: str) -> None:
        """As sockets of the node see the Service: a cluster IP in front of the same backends."""
        both = site.pod(1, version), site.pod(2, version)
        site.serve(version, kind, *both, affinity=60)
        tables, protocol = site.datapaths[site.one].tables, PROTOCOLS[kind]
        address = ip_address(VIP[version])
        packets = tables.services.get(
            lb.ServiceKey(address=ip_address(ONE[version]), port=PORT, protocol=protocol, scope=lb.Scope.PACKET)
        )
        assert packets is not None
        tables.services.put(lb.ServiceKey(address=address, port=80, protocol=protocol), packets)
        service = msgspec.structs.replace(
            sample_of(Service),
            namespace="shop",
            name="web",
            cluster_ips=(address,),
            affinity_seconds=60,
            ports=(ServicePort(name="", protocol=protocol, port=80, node_port=PORT),),
        )
        doctor = AffinityDoctor(lambda: (service,), tables)
        tables.nats.apply({}, tables.nats.items())  # of other tests: they end meanwhile, or their port comes again
        assert sum(seen.flows for seen in asyncio.run(doctor.check(DoctorRequest()))) == 0
        chosen = ""
        with ExitStack() as stack:
            for _ in range(5):
                asking = stack.enter_context(opened(site.client, version, kind))
                asking.settimeout(2)
                asking.connect((ONE[version], PORT))
                asking.send(b"?")
                chosen = asking.recv(200).decode()[:4]
            (one,) = asyncio.run(doctor.check(DoctorRequest(kind="service", name="shop/web")))
        assert asyncio.run(doctor.check(DoctorRequest(kind="service", name="shop/other"))) == ()
        assert one.backends == tuple(sorted((end(pod, TARGET) for pod in both), key=str))
        ((client, index),) = one.outside
        assert (client, one.busiest, one.pods) == (CLIENT[version], CLIENT[version], (0, 0))
        assert one.backends[index] == end(site.pod(int(chosen[3]), version), TARGET)
        assert one.flows == 5
        assert one.busiest_flows == 5

    def test_local_only_is_silent_without_a_local_backend(self, site: Town, version: int, kind: str) -> None:
        before = drops(site, DropReason.SERVICE_NO_LOCAL_BACKEND)
        site.serve(version, kind, site.pod(3, version), flags=ServiceFlag.LOCAL_ONLY)
        assert site.ask(version, kind, seconds=0.3) == ""
        assert drops(site, DropReason.SERVICE_NO_LOCAL_BACKEND) > before
        site.serve(version, kind, site.pod(2, version), flags=ServiceFlag.LOCAL_ONLY)
        assert site.ask(version, kind) == f"pod2 {CLIENT[version]}"

    def test_source_ranges(self, site: Town, version: int, kind: str) -> None:
        where = "198.51.100.0/24" if version == 4 else "2001:db8:1::/48"
        before = drops(site, DropReason.SERVICE_SOURCE)
        site.serve(version, kind, site.pod(1, version), ranges=(where,))
        assert site.ask(version, kind, seconds=0.3) == ""
        assert drops(site, DropReason.SERVICE_SOURCE) > before
        site.serve(version, kind, site.pod(1, version), ranges=(f"{CLIENT[version]}/{32 if version == 4 else 128}",))
        assert site.ask(version, kind) == f"pod1 {CLIENT[version]}"

    def test_without_backends_the_nodes_own_port_refuses(self, site: Town, version: int, kind: str) -> None:
        site.serve(version, kind)
        with pytest.raises(ConnectionRefusedError):
            site.ask(version, kind)

    def test_without_backends_an_address_that_is_not_the_nodes_refuses(
        self, site: Town, version: int, kind: str
    ) -> None:
        site.serve(version, kind, frontend=VIP[version], flags=ServiceFlag.FOREIGN)
        with pytest.raises(ConnectionRefusedError):
            site.ask(version, kind, address=VIP[version])

    @WHERE
    def test_backend_that_does_not_listen_refuses(self, site: Town, version: int, kind: str, where: str) -> None:
        address, _ = backend(site, where, version)
        site.serve(version, kind, address)
        tables = site.datapaths[site.one].tables
        tables.backends.apply(
            {k: type(v)(address=v.address, port=TARGET + 1) for k, v in tables.backends.items().items()}
        )
        with pytest.raises(ConnectionRefusedError):
            site.ask(version, kind)


@FAMILIES
@WHERE
def test_large_transfers_both_ways(site: Town, version: int, where: str) -> None:
    """Segments of 64 KB on the way, and links too narrow for what both ends think: each has to be told by ICMP."""
    address, _ = backend(site, where, version)
    for netns in (site.client, site.one, site.other, *(pod.netns for pod in site.pods.values())):
        run("ip", "-n", netns, "-4" if version == 4 else "-6", "route", "flush", "cache")
    site.serve(version, "tcp", address)
    payload = os.urandom(3 << 20)
    got = hashlib.sha256()
    with opened(site.client, version, "tcp") as asking:
        asking.settimeout(8)
        asking.connect((ONE[version], PORT))
        asking.recv(200)
        sender = threading.Thread(target=asking.sendall, args=(payload,))
        sender.start()
        size = 0
        while size < len(payload):
            raw = asking.recv(1 << 20)
            assert raw
            got.update(raw)
            size += len(raw)
        sender.join()
    assert got.digest() == hashlib.sha256(payload).digest()


@FAMILIES
@WHERE
def test_datagrams_in_fragments(site: Town, version: int, where: str) -> None:
    address, answer = backend(site, where, version)
    site.serve(version, "udp", address)
    payload = os.urandom(5000)
    with opened(site.client, version, "udp") as asking:
        asking.settimeout(0.5)
        # Fragmented here, to what the narrowest link takes: a router does not do it for IPv6.
        option = (socket.IPPROTO_IP, 10, 0) if version == 4 else (socket.IPPROTO_IPV6, 24, 1280)
        asking.setsockopt(*option)
        asking.connect((ONE[version], PORT))
        got = b""
        for _ in range(4):  # the backend may have to learn how wide the way back is
            asking.send(payload)
            try:
                got = asking.recv(1 << 16)
                break
            except TimeoutError:
                asking.settimeout(0.5)
        assert got == answer.encode() + payload


@FAMILIES
def test_connection_outlives_its_backends_entry_in_the_tables(site: Town, version: int) -> None:
    for first, second in ((1, 2), (3, 2)):
        site.serve(version, "tcp", site.pod(first, version))
        with opened(site.client, version, "tcp") as asking:
            asking.settimeout(20)
            asking.connect((ONE[version], PORT))
            assert asking.recv(200).startswith(f"pod{first} ".encode())
            site.serve(version, "tcp", site.pod(second, version))
            asking.sendall(b"still there?")
            assert asking.recv(200) == b"still there?"
            assert site.ask(version, "tcp").startswith(f"pod{second} ")
            asking.sendall(b"and now?")
            assert asking.recv(200) == b"and now?"


@FAMILIES
def test_datagrams_leave_a_backend_that_left(site: Town, version: int) -> None:
    site.serve(version, "udp", site.pod(1, version), site.pod(3, version))
    with opened(site.client, version, "udp") as asking:
        asking.settimeout(20)
        asking.connect((ONE[version], PORT))
        asking.send(b"")
        first = asking.recv(200).decode()
        stays = 3 if first.startswith("pod1 ") else 1
        site.serve(version, "udp", site.pod(stays, version))
        asking.send(b"")
        assert asking.recv(200).decode().startswith(f"pod{stays} ")


@FAMILIES
def test_policy_of_a_local_backend_knows_the_client(site: Town, version: int) -> None:
    tables = site.datapaths[site.one].tables
    pod = site.pods[1]
    site.serve(version, "tcp", site.pod(1, version))
    scope = scope_number(pod.identity, Direction.INGRESS)
    isolated = pl.Subject(ingress=scope, ingress_isolated=True, egress_isolated=True)
    tables.subjects.put(pl.SubjectKey(identity=pod.identity), isolated)
    tables.bump_generation()
    try:
        assert site.ask(version, "tcp", seconds=0.3) == ""
        tables.cidrs.put(pl.CidrKey.of(bytes(8), ip_network(CLIENT[version])), pl.CidrNumber(number=5))
        rule = Rule(
            pod.identity, Direction.INGRESS, PeerKind.CIDR_SET, 5, PortMatch(6, TARGET, 16), 1, Verdict.ALLOW, 0
        )
        write_rules(tables, pod.identity, Direction.INGRESS, [rule])
        tables.bump_generation()
        assert site.ask(version, "tcp") == f"pod1 {CLIENT[version]}"
    finally:
        tables.subjects.put(
            pl.SubjectKey(identity=pod.identity), pl.Subject(ingress_isolated=False, egress_isolated=False)
        )
        tables.bump_generation()


def test_the_nodes_own_connections_are_as_before(site: Town) -> None:
    """While to_wire looks at what the node sends: its connections out, and those to its own ports, are left alone."""
    for version in (4, 6):
        site.serve(version, "tcp", ONE[version])
        assert site.ask(version, "tcp") == f"one {CLIENT[version]}"
        with opened(site.client, version, "tcp") as direct:
            direct.settimeout(20)
            direct.connect((ONE[version], TARGET))
            assert direct.recv(200).decode() == f"one {CLIENT[version]}"
        with opened(site.one, version, "tcp") as out:
            out.settimeout(20)
            out.connect((OTHER[version], TARGET))
            assert out.recv(200).decode() == f"other {ONE[version]}"
        with opened(site.one, version, "tcp") as to_pod:
            to_pod.settimeout(20)
            to_pod.connect((site.pod(1, version), TARGET))
            assert to_pod.recv(200).decode().startswith("pod1 ")
            assert sent_again(to_pod) == 0
