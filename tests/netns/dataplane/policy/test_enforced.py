"""Policy, Services and flows on a real node, with real ipam and policy services behind it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from cli import gather
from cli.faults import Declined
from cli.link import Link
from cli.reports.paths import Path
from cli.settings import BusSettings
from linux import bpf
from proto.findings import DoctorRequest, Finding
from proto.flow import FlowEvent
from proto.objects import (
    EndpointPort,
    EndpointSlice,
    IPBlock,
    NetworkPolicy,
    Node,
    Peer,
    Pod,
    PolicyPort,
    PolicyRule,
    Selector,
    Service,
    ServicePort,
    SliceEndpoint,
)
from proto.policy import Ack
from proto.subjects import ACKS, FLOWS
from tests.bpf import frames
from tests.bpf.frames import UDP
from tests.bpf.world import ifindex_of, inside, run
from tests.natsd import bus_of
from tests.netns.dataplane.mesh import Listener, Mesh, RunningPod, dial, wait_for

pytestmark = pytest.mark.privileged


def selects(**labels: str) -> Selector:
    return Selector(match_labels=tuple(sorted(labels.items())))


def deny_ingress(name: str, app: str, *allowed: str, port: int = 80) -> NetworkPolicy:
    """Ingress policy of the pods of an app: the named apps may come to one port."""
    peers = tuple(Peer(pod_selector=selects(app=one)) for one in allowed)
    rules = (PolicyRule(peers=peers, ports=(PolicyPort(protocol=6, port=port),)),) if allowed else ()
    return NetworkPolicy(
        namespace="shop",
        name=name,
        uid=f"uid-{name}",
        pod_selector=selects(app=app),
        applies_ingress=True,
        applies_egress=False,
        ingress=rules,
    )


def becomes(node: Mesh, source: RunningPod, target: RunningPod, listener: Listener, *, open: bool) -> None:  # noqa: A002
    wait_for(
        f"{source.pod.name} → {target.pod.name} to be {'open' if open else 'closed'}",
        lambda: bool(dial(source.netns, target.four, 80, listener, 0.3)) == open,
        10,
    )
    assert bool(dial(source.netns, target.six, 80, listener, 0.3)) == open


def test_a_policy_made_changed_and_taken_away(node: Mesh) -> None:
    prober, other, target = node.pod("front"), node.pod("other"), node.pod("back")
    listener = Listener(target.netns)
    becomes(node, prober, target, listener, open=True)
    deny = deny_ingress("back", "back")
    node.put(deny)
    becomes(node, prober, target, listener, open=False)
    node.put(deny_ingress("back", "back", "front"))
    becomes(node, prober, target, listener, open=True)
    assert dial(other.netns, target.four, 80, listener, 0.3) == ""
    assert dial(node.netns, target.four, 80, listener), "the node itself (its kubelet's probes) always may"
    node.delete(deny)
    becomes(node, other, target, listener, open=True)
    listener.close()


def test_a_right_taken_away_ends_a_live_connection(node: Mesh) -> None:
    prober, target = node.pod("live-a"), node.pod("live-b")
    with inside(target.netns):
        server = socket.create_server(("0.0.0.0", 90))
    with inside(prober.netns):
        client = socket.create_connection((target.four, 90), 2)
    side, _ = server.accept()
    client.sendall(b"x")
    side.settimeout(1)
    assert side.recv(1) == b"x"
    policy = deny_ingress("live", "live-b")
    node.put(policy)

    def ended() -> bool:
        client.sendall(b"y")
        try:
            return not side.recv(10)
        except TimeoutError:
            return True

    side.settimeout(0.4)
    wait_for("the connection to carry nothing", ended)
    for one in (client, side, server):
        one.close()
    node.delete(policy)


def test_a_pod_relabelled_is_another_identity_for_its_peers(node: Mesh) -> None:
    node.put(deny_ingress("vault", "vault", "trusted"))
    vault, guest = node.pod("vault"), node.pod("guest")
    listener = Listener(vault.netns)
    becomes(node, guest, vault, listener, open=False)
    trusted = msgspec.structs.replace(guest.pod, labels=(("app", "trusted"),))
    node.put(trusted)
    becomes(node, guest, vault, listener, open=True)
    node.put(guest.pod)
    becomes(node, guest, vault, listener, open=False)
    listener.close()


def test_not_one_packet_of_a_forbidden_pod_passes_from_its_first_instant(node: Mesh) -> None:
    """A tight loop in the pod's namespace sends before the pod has an interface, while it gets one, and after."""
    sink = node.pod("sink")
    egress = NetworkPolicy(
        namespace="shop",
        name="quiet",
        uid="uid-quiet",
        pod_selector=selects(app="quiet"),
        applies_ingress=False,
        applies_egress=True,
    )
    node.put(egress)
    with inside(sink.netns):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((sink.four, 5000))
    receiver.settimeout(0.3)
    for attempt in range(5):
        assert _burst(node, sink, f"quiet-{attempt}", "quiet") > 100
        with pytest.raises(TimeoutError):
            receiver.recv(100)
    assert _burst(node, sink, "loud", "loud") > 100
    assert receiver.recv(100) == b"loud", "a pod that may send does reach the sink in the same way"
    receiver.close()


def _burst(node: Mesh, sink: RunningPod, name: str, app: str) -> int:
    """Attaches a pod while a thread sends from its namespace; how many packets had a way out."""
    pod = Pod(namespace="shop", name=name, uid=f"uid-{name}", node="n1", labels=(("app", app),))
    node.put(pod)
    netns = node.empty_namespace()
    with inside(netns):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stop, sent = threading.Event(), [0]

    def send() -> None:
        while not stop.is_set():
            try:
                sender.sendto(app.encode(), (sink.four, 5000))
                sent[0] += 1
            except OSError:
                continue

    thread = threading.Thread(target=send)
    thread.start()
    assert node.cni("ADD", name, netns, pod).code == 0
    time.sleep(0.2)
    stop.set()
    thread.join()
    sender.close()
    return sent[0]


def test_a_pod_whose_policy_is_not_compiled_waits_and_nothing_is_made(node: Mesh) -> None:
    node.kill("policy")
    try:
        pod = Pod(namespace="shop", name="uncompiled", uid="uid-un", node="n1", labels=(("app", "uncompiled"),))
        node.put(pod)
        netns = node.empty_namespace()
        answer = node.cni("ADD", "uncompiled", netns, pod)
        assert answer.body["code"] == 11
        assert "policy" in answer.body["msg"]
        assert "eth0" not in run("ip", "-n", netns, "-br", "link")
    finally:
        node.start("policy", "policy")
    wait_for("the pod to start", lambda: node.cni("ADD", "uncompiled", netns, pod).code == 0)


_CLIENT = """
import os, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
kind = socket.SOCK_STREAM if sys.argv[4] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
s.settimeout(0.7)
try:
    s.connect((sys.argv[2], int(sys.argv[3])))
    peer = s.getpeername()[0]  # whoever answers closes without reading: a socket that is reset has no peer any more
    s.send(b"?")
    print(peer, s.recv(100).decode().strip())
except OSError as error:
    print(type(error).__name__)
"""


def connect(node: Mesh, netns: str, address: str, port: int, kind: str = "tcp") -> str:
    """What a process of a pod sees of a Service: its peer's name and answer."""
    command = ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-c", _CLIENT]
    done = subprocess.run(
        [*command, str(node.cgroup), address, str(port), kind], capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout.strip() or done.stderr


def web(*addresses: str, name: str = "web", **more: Any) -> Service:
    return Service(
        namespace="shop",
        name=name,
        uid=f"uid-{name}",
        cluster_ips=tuple(ip_address(address) for address in addresses),
        ports=(ServicePort(name="http", protocol=6, port=80),),
        **more,
    )


def slice_for(service: str, family: int, *pods: RunningPod, ready: bool = True) -> EndpointSlice:
    return EndpointSlice(
        namespace="shop",
        name=f"{service}-{family}",
        service=service,
        endpoints=tuple(
            SliceEndpoint(addresses=(ip_address(pod.four if family == 4 else pod.six),), ready=ready, node="n1")
            for pod in pods
        ),
        ports=(EndpointPort(name="http", protocol=6, port=8080),),
    )


def test_a_service_is_reached_by_pods_and_by_the_node(node: Mesh) -> None:
    client, backend = node.pod("client"), node.pod("backend")
    listener = Listener(backend.netns, 8080)
    node.put(web("10.96.0.10", "fd00:10:96::10"), slice_for("web", 4, backend), slice_for("web", 6, backend))
    answering = threading.Event()

    def answer() -> None:
        while not answering.is_set():
            listener.answer()
            time.sleep(0.002)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        wait_for("the Service", lambda: connect(node, client.netns, "10.96.0.10", 80) == f"10.96.0.10 {client.four}")
        assert connect(node, client.netns, "fd00:10:96::10", 80) == f"fd00:10:96::10 {client.six}"
        assert connect(node, node.netns, "10.96.0.10", 80).startswith("10.96.0.10 ")
        node.put(slice_for("web", 4))
        wait_for("nobody to answer", lambda: connect(node, client.netns, "10.96.0.10", 80) == "ConnectionRefusedError")
        node.delete(web("10.96.0.10"))
        wait_for("the Service to be gone", lambda: "Refused" not in connect(node, client.netns, "10.96.0.10", 80))
    finally:
        answering.set()
        thread.join()
        listener.close()


def test_a_drop_is_reported_with_names_and_the_policy_that_says_so(node: Mesh) -> None:
    node.put(deny_ingress("sealed", "sealed"))
    sealed, caller = node.pod("sealed"), node.pod("caller")
    listener = Listener(sealed.netns)
    becomes(node, caller, sealed, listener, open=False)
    heard: list[FlowEvent] = []

    async def listen() -> None:
        async with bus_of(node.nats, "cli") as bus:
            await bus.subscribe(f"{FLOWS}.>", FlowEvent, lambda _, event: heard.append(event))
            await asyncio.sleep(0.3)
            for _ in range(5):
                await asyncio.to_thread(dial, caller.netns, sealed.four, 80, listener, 0.2)
            await asyncio.sleep(0.5)

    asyncio.run(listen())
    mine = [event for event in heard if str(event.destination) == sealed.four]
    assert mine, heard[:3]
    event = mine[0]
    assert (event.reason, event.direction, event.node) == ("POLICY_DENIED", "ingress", "n1")
    assert (event.source_name, event.destination_name) == ("shop/caller", "shop/sealed")
    assert (event.destination_port, event.protocol) == (80, 6)
    assert event.policies == ("shop/sealed",)
    assert abs(event.time_ns - time.time_ns()) < 60e9
    listener.close()


def test_the_node_acknowledges_what_its_kernel_holds(node: Mesh) -> None:
    def ack() -> Ack:
        return node.read(ACKS, Ack)["n1"]

    wait_for("readiness", lambda: ack().ready)
    before = ack()
    node.put(deny_ingress("acked", "acked"))
    wait_for("a later revision", lambda: ack().rules.sequence > before.rules.sequence)
    wait_for("the endpoints", lambda: ack().pods > 0 and ack().endpoints > 0)


def test_many_at_once(node: Mesh) -> None:
    pods = [
        Pod(namespace="shop", name=f"many-{i}", uid=f"uid-m{i}", node="n1", labels=(("app", "many"),))
        for i in range(24)
    ]
    node.put(*pods)
    time.sleep(1)
    spaces = [node.empty_namespace() for _ in pods]
    results: dict[str, Any] = {}

    def at_once(work: Callable[[int], Any], key: str) -> None:
        threads = [threading.Thread(target=lambda i=i: results.__setitem__(f"{key}{i}", work(i))) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    at_once(lambda i: node.cni("ADD", f"many{i}", spaces[i], pods[i]), "add")
    answers = [results[f"add{i}"] for i in range(24)]
    assert [answer.code for answer in answers] == [0] * 24, answers
    addresses = [entry["address"] for answer in answers for entry in answer.body["ips"]]
    assert len(set(addresses)) == 48
    at_once(lambda i: node.cni("DEL", f"many{i}", spaces[i]), "del")
    assert [results[f"del{i}"].code for i in range(24)] == [0] * 24
    wait_for("links to go", lambda: not [ns for ns in spaces if "eth0" in run("ip", "-n", ns, "-br", "link")])


def test_what_it_measures_of_itself(node: Mesh) -> None:
    """Read on the agent's own loopback, which is the node's."""
    node.put(deny_ingress("measured", "measured"))
    measured, caller = node.pod("measured"), node.pod("measurer")
    listener = Listener(measured.netns)
    becomes(node, caller, measured, listener, open=False)
    assert dial(node.netns, measured.four, 80, listener)
    listener.close()
    port = next(line["health_port"] for line in reversed(node.log("dataplane")) if line["event"] == "started")
    samples = node.samples()
    assert samples["airmesh_endpoints"] >= 2
    assert samples["airmesh_conntrack_flows"] > 0
    assert samples['airmesh_packets_total{direction="ingress",reason="policy_denied"}'] > 0
    assert samples['airmesh_cni_seconds_count{code="0",verb="ADD"}'] >= 2
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as page:
        assert json.loads(page.read()) == {"ready": True, "missing": {}, "notes": {}}


def test_who_forges_a_source_is_named_and_not_whose_it_is(node: Mesh) -> None:
    thief, owner = node.pod("thief"), node.pod("owner")
    heard: list[FlowEvent] = []

    async def listen() -> None:
        async with bus_of(node.nats, "cli") as bus:
            await bus.subscribe(f"{FLOWS}.>", FlowEvent, lambda _, event: heard.append(event))
            await asyncio.sleep(0.3)
            with inside(thief.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind(("eth0", 0))
                own = raw.getsockname()[4]
                for source, kind in ((owner.four, 0x0800), (owner.six, 0x86DD)):
                    to = "172.30.0.1" if kind == 0x0800 else "fd00:172:30::1"
                    raw.send(frames.eth(frames.ip(source, to, UDP, frames.udp(1, 2)), source=own, kind=kind))
            await asyncio.sleep(1.0)

    asyncio.run(listen())
    reported = [event for event in heard if event.reason == "SPOOFED_ADDRESS"]
    assert {event.source.version for event in reported} == {4, 6}
    assert {event.source_name for event in reported} == {"shop/thief"}
    links = run("ip", "-n", node.netns, "route", "show", thief.four).split("dev ")[1].split()[0]
    assert {event.interface for event in reported} == {links}


def test_the_kernel_knows_which_interfaces_bring_others(node: Mesh) -> None:
    wanted = {ifindex_of(node.netns, "fab0"): 0, ifindex_of(node.netns, "lo"): 1}
    descriptor = bpf.pinned(next(node.pins.glob("v*/maps/am_uplinks-*")))
    try:
        stray = (4242).to_bytes(4, "little")
        bpf.update(descriptor, stray, bytes(4))

        def reported() -> dict[int, int]:
            found = {}
            for _, keys, values in bpf.lookup_batch(descriptor, 4, 4):
                for at in range(0, len(keys), 4):
                    found[int.from_bytes(keys[at : at + 4], "little")] = int.from_bytes(values[at : at + 4], "little")
            return found

        wait_for("what nobody asked for to be taken back", lambda: reported() == wanted)
    finally:
        os.close(descriptor)


def paths_of(node: Mesh, source: RunningPod, target: RunningPod, port: int) -> tuple[Path, ...]:
    """As `airmesh doctor` follows a connection."""
    settings = BusSettings(url=node.nats.url, seed_file=node.nats.seeds / "cli.seed")
    ends = f"shop/{source.pod.name}", f"shop/{target.pod.name}"
    asked = DoctorRequest(kind="connection", source=ends[0], destination=ends[1], port=port)

    async def ask() -> tuple[Path, ...]:
        async with Link(settings) as link:
            return await gather.followed(link, asked, 0, 60.0)

    return asyncio.run(ask())


def test_the_doctor_follows_a_connection_and_leaves_nothing_of_it(node: Mesh) -> None:
    """The agent's own answer: allowed, then denied by a policy that it names; no packet reached the pod."""
    source, target = node.pod("asks", patience=60), node.pod("asked", patience=60)
    server = Listener(target.netns, 8080)

    def followed() -> tuple[Path, ...]:
        found: tuple[Path, ...] = ()
        with suppress(Declined):  # an endpoint is published after its pod has started
            found = paths_of(node, source, target, 8080)
        judged = [said for one in found for hop in one.hops for said in hop.hop.judgements]
        return found if len(found) == 2 and judged and all(said.peer for said in judged) else ()

    paths = wait_for("both pods to be known", followed)
    assert [(str(one.source.address), one.ends) for one in paths] == [(source.four, ""), (source.six, "")]
    for one in paths:
        judged = [said for hop in one.hops for said in hop.hop.judgements]
        assert [(said.direction, said.reason, said.subject, said.peer) for said in judged] == [
            ("egress", "FORWARDED", "shop/asks", "shop/asked"),
            ("ingress", "FORWARDED", "shop/asked", "shop/asks"),
            ("egress", "REPLY", "shop/asked", "shop/asks"),
            ("ingress", "REPLY", "shop/asks", "shop/asked"),
        ]
        assert one.listener is not None
        assert one.listener.listens
    policy = deny_ingress("asked", "asked")
    node.put(policy)

    def denied() -> bool:
        return all("POLICY_DENIED" in one.ends for one in paths_of(node, source, target, 8080))

    wait_for("the policy to be seen", denied)
    assert paths_of(node, source, target, 8080)[0].hops[-1].hop.judgements[-1].policies == ("shop/asked",)
    assert not server.answer(), "no packet came"
    server.close()
    node.delete(policy)


def found_on(node: Mesh, asked: DoctorRequest) -> dict[str, Finding]:
    """What the node's agent finds, by code."""
    settings = BusSettings(url=node.nats.url, seed_file=node.nats.seeds / "cli.seed")

    async def ask() -> dict[str, Finding]:
        async with Link(settings) as link:
            answers = await link.findings(asked, ("dataplane-n1",), 20.0)
        return {one.code: one for user, found, _ in answers if user == "dataplane-n1" for one in found.findings}

    return asyncio.run(ask())


def test_an_ip_block_that_never_sees_its_clients_is_found_until_it_holds_the_node(node: Mesh) -> None:
    """What a node translates comes from the second node's address, with a port that only translated flows have."""
    target, other, fabric = node.pod("office", patience=60), ip_address("172.30.0.2"), f"{node.netns}-f"
    run("ip", "-n", fabric, "addr", "add", f"{other}/24", "dev", "fab0")
    run("ip", "-n", fabric, "route", "replace", "10.244.0.0/16", "via", "172.30.0.11")
    policy = msgspec.structs.replace(
        deny_ingress("office", "office", "nobody"),
        ingress=(
            PolicyRule(
                peers=(Peer(ip_block=IPBlock(ip_network("198.51.100.0/24"))),),
                ports=(PolicyPort(protocol=6, port=80),),
            ),
        ),
    )
    service = Service(
        namespace="shop", name="office", uid="s-office", type="NodePort", ports=(ServicePort("", 6, 80, 30099),)
    )
    part = EndpointSlice(
        namespace="shop",
        name="office-1",
        service="office",
        endpoints=(SliceEndpoint(addresses=(ip_address(target.four),), node="n1"),),
        ports=(EndpointPort("", 6, 80),),
    )
    objects = (Node(name="n2", uid="node-uid-2", addresses=(other,), ready=True), service, part, policy)
    node.put(*objects)
    asked = DoctorRequest(kind="policy", name="shop/office")
    code = "policy-ipblock-masqueraded"

    def named() -> Finding | None:
        with inside(fabric), socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((str(other), 61_234))
            client.settimeout(0.3)
            with suppress(OSError):
                client.connect((target.four, 80))
        return found_on(node, asked).get(code)

    found = wait_for("the denial to be explained", named)
    assert found is not None
    assert found.about == "NetworkPolicy shop/office"
    assert "198.51.100.0/24 of shop/office never sees theirs" in found.cause
    assert f"of n2 ({other}) to port 80 denied" in found.observed[0].text
    node.put(msgspec.structs.replace(service, external_policy="Local"))
    wait_for("the first fix to be seen", lambda: code not in found_on(node, asked))
    node.put(service)
    wait_for("the Service as it was", lambda: code in found_on(node, asked))
    peers = (Peer(ip_block=IPBlock(ip_network(f"{other}/32"))), *policy.ingress[0].peers)
    node.put(msgspec.structs.replace(policy, ingress=(PolicyRule(peers=peers, ports=policy.ingress[0].ports),)))
    wait_for("the second fix to be seen", lambda: code not in found_on(node, asked))
    node.delete(*objects)
    run("ip", "-n", fabric, "addr", "del", f"{other}/24", "dev", "fab0")
