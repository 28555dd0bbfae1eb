"""The path of a connection: whom to ask next, how it ends, whom it concerns, and what cannot be followed."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec
import pytest

from cli.faults import Complaint, Declined, Usage
from cli.reports import paths
from cli.reports.doctor import Answered, diagnosis, of_connection
from cli.reports.paths import End, Path
from cli.reports.table import Cell
from proto.findings import DoctorRequest, Expected, Finding, Findings
from proto.objects import Pod, Service, ServicePort
from proto.probes import Judgement, Listener, ProbeAnswer, ProbeHop, ProbeResult, ServiceChoice

A = End(name="shop/a", address=ip_address("10.244.1.1"), node="n1")
A6 = End(name="shop/a", address=ip_address("fd00::1:1"), node="n1")
B = End(name="shop/b", address=ip_address("10.244.2.2"), node="n2")
NEAR = End(name="shop/near", address=ip_address("10.244.1.2"), node="n1")
VIRTUAL = ip_address("10.96.0.9")


def path(destination: End = B, source: End = A) -> Path:
    return paths.between((source,), (destination,), 80, 6)[0]


def hop(way: str, outcome: str, *, reply: bool = False, frame: bytes = b"", **more: object) -> ProbeHop:
    values = {"way": way, "is_reply": reply, "program": "p", "outcome": outcome, "frame": frame, **more}
    return msgspec.convert(values, ProbeHop)


def steps(one: Path) -> tuple[str, list[tuple[str, bool]]]:
    asked = one.question()
    assert asked is not None
    return asked[0], [(step.way, step.is_reply) for step in asked[1].steps]


OUT = hop("leaves", "sent", frame=b"frame", model="vxlan")
THERE = hop("arrives", "delivered"), hop("leaves", "sent", reply=True, frame=b"back")
BACK = OUT, hop("arrives", "delivered", reply=True)
LISTENS = Listener(listens=True)


def test_a_path_between_two_nodes() -> None:
    one = path()
    assert steps(one) == ("n1", [("leaves", False)])
    one = one.reported(ProbeResult(hops=(OUT,)))
    assert steps(one) == ("n2", [("arrives", False), ("leaves", True)])
    assert one.question()[1].steps[0].frame == b"frame"  # type: ignore[index]
    one = one.reported(ProbeResult(hops=THERE, listener=LISTENS))
    assert steps(one) == ("n1", [("leaves", False), ("arrives", True)])
    assert one.question()[1].steps[1].frame == b"back"  # type: ignore[index]
    one = one.reported(ProbeResult(hops=BACK))
    assert (one.question(), one.ends, one.well) == (None, "", True)
    assert [(each.node, each.hop.is_reply) for each in one.hops] == [
        ("n1", False), ("n2", False), ("n2", True), ("n1", True),
    ]  # fmt: skip
    assert not any(each.hop.frame for each in one.shown().hops)


def test_a_path_on_one_node() -> None:
    one = path(NEAR).reported(ProbeResult(hops=(hop("leaves", "delivered"),)))
    assert steps(one) == ("n1", [("leaves", False), ("leaves", True)])
    both = hop("leaves", "delivered"), hop("leaves", "delivered", reply=True)
    one = one.reported(ProbeResult(hops=both, listener=LISTENS))
    assert (one.stage, one.ends, len(one.hops)) == ("done", "", 2)


def test_what_came_by_wireguard_is_decrypted_at_the_other_end() -> None:
    one = path().reported(ProbeResult(hops=(hop("leaves", "sent", frame=b"f", model="wireguard"),)))
    assert one.question()[1].steps[0].decrypted  # type: ignore[index]


@pytest.mark.parametrize(
    ("results", "ends"),
    [
        ([ProbeResult(refused="no pod of it")], "no pod of it"),
        ([ProbeResult()], "node n1 did not say"),
        ([ProbeResult(hops=(hop("leaves", "dropped", reason="LINK_UNKNOWN"),))], "node n1 drops it: the pod's link"),
        ([ProbeResult(hops=(hop("leaves", "stack", device="am-vxlan"),))], "of node n1 takes it, by am-vxlan"),
        ([ProbeResult(hops=(hop("leaves", "stack"),))], "which has no route"),
        (
            [ProbeResult(hops=(OUT,)), ProbeResult(hops=(hop("arrives", "stack", device="lo"),), refused="no pod")],
            "the stack of node n2 takes it, by lo, and not to the pod",
        ),
        ([ProbeResult(hops=(OUT,)), ProbeResult(hops=THERE[:1], refused="it is gone")], "it is gone"),
        ([ProbeResult(hops=(OUT,)), ProbeResult(hops=(hop("arrives", "dropped", reason="TUNNEL_PEER"),))], "node n2"),
        ([ProbeResult(hops=(OUT,)), ProbeResult(hops=(hop("arrives", "dropped"),))], "no program says why"),
        (
            [ProbeResult(hops=(OUT,)), ProbeResult(hops=(THERE[0], hop("leaves", "dropped", reply=True, reason="X")))],
            "node n2 drops the answer: X",
        ),
        (
            [ProbeResult(hops=(OUT,)), ProbeResult(hops=(THERE[0], hop("leaves", "stack", reply=True)))],
            "the stack of node n2",
        ),
        (
            [ProbeResult(hops=(OUT,)), ProbeResult(hops=THERE, listener=Listener(listens=False)),
             ProbeResult(hops=BACK)],
            "nothing listens on tcp 80 in shop/b",
        ),
        (
            [ProbeResult(hops=(OUT,)), ProbeResult(hops=THERE),
             ProbeResult(hops=(OUT, hop("arrives", "stack", reply=True, device="eth0")))],
            "the stack of node n1 takes it, by eth0",
        ),
    ],
)  # fmt: skip
def test_how_a_path_ends(results: list[ProbeResult], ends: str) -> None:
    one = path()
    for result in results:
        one = one.reported(result)
    assert ends in one.ends
    assert (one.question(), one.well) == (None, False)
    assert paths.tables((one,))[0].rows or not one.hops


@pytest.mark.parametrize(
    ("destination", "device", "ends"),
    [
        (NEAR, "eth0", "the stack of node n1 takes it, by eth0, and not to the pod"),
        (End(name="", address=ip_address("192.0.2.5")), "", "which has no route"),
    ],
)
def test_what_the_stack_takes_is_not_always_on_its_way_out(destination: End, device: str, ends: str) -> None:
    """To a pod of this very node, or without any route, it is a fault."""
    one = path(destination).reported(ProbeResult(hops=(hop("leaves", "stack", frame=b"f", device=device),)))
    assert ends in one.ends
    assert not one.well


def test_a_denial_names_policy_and_end() -> None:
    judged = Judgement(
        "ingress", "POLICY_DENIED", subject="shop/b", peer="shop/a", policies=("shop/deny",), revision="e:1"
    )
    dropped = hop("arrives", "dropped", reason="POLICY_DENIED")
    dropped = msgspec.structs.replace(dropped, judgements=(judged,))
    one = path().reported(ProbeResult(hops=(OUT,))).reported(ProbeResult(hops=(dropped,)))
    assert one.ends == (
        "node n2 drops it at the ingress of shop/b: policy denies it, shop/deny isolates it, and no rule allows the "
        "peer (POLICY_DENIED)"
    )


def test_beyond_the_mesh_is_no_fault() -> None:
    world = End(name="", address=ip_address("192.0.2.5"))
    out = msgspec.structs.replace(hop("leaves", "stack", device="eth0"), next_hop=ip_address("172.30.0.1"))
    one = path(world).reported(ProbeResult(hops=(out,)))
    assert (one.well, one.leaves) == (True, True)
    assert one.ends == "it leaves the pods' network at node n1: eth0 to 172.30.0.1"


def test_each_backend_has_a_path_of_its_own() -> None:
    choice = ServiceChoice(backends=((B.address, 8080), (ip_address("192.0.2.5"), 8080)), count=2)
    one = path(End(name="", address=VIRTUAL)).reported(ProbeResult(service=choice))
    each = paths.of_backends(one, {B.address: B})
    assert [(other.destination.name, other.port, other.service, other.stage) for other in each] == [
        ("shop/b", 8080, "10.96.0.9:80", "out"),
        ("", 8080, "10.96.0.9:80", "out"),
    ]
    assert each[0].source_port != each[1].source_port
    assert [paths.of_backends(other, {B.address: B}) for other in each] == [(other,) for other in each]


@pytest.mark.parametrize(
    ("choice", "ends"),
    [
        (ServiceChoice(), "no endpoint: a connection is refused at once"),
        (ServiceChoice(backends=((B.address, 80),), count=1, translated=False), "socket programs do not act"),
    ],
)
def test_a_service_that_gives_no_backend(choice: ServiceChoice, ends: str) -> None:
    one = path(End(name="", address=VIRTUAL)).reported(ProbeResult(service=choice))
    assert ends in one.ends
    assert paths.of_backends(one, {}) == (one,)
    assert not one.well


def test_a_node_that_does_not_answer() -> None:
    assert "agent of node n1 does not answer" in paths.result_of("n1", None, 0).refused
    answer = ProbeAnswer(node="n1", results=(ProbeResult(refused="x"),))
    assert paths.result_of("n1", answer, 0).refused == "x"
    assert "more than 32" in paths.result_of("n1", answer, 1).refused


def test_a_path_for_each_family_that_both_have() -> None:
    both = paths.between((A, A6), (B, msgspec.structs.replace(B, address=ip_address("fd00::2:2"))), 80, 6)
    assert [one.source.address.version for one in both] == [4, 6]
    assert len({one.source_port for one in both}) == 2
    assert len(paths.between((A, A6), (B,), 80, 6)) == 1
    with pytest.raises(Usage, match="no address of one family"):
        paths.between((A6,), (B,), 80, 6)
    with pytest.raises(Usage, match="no address of IPv6"):
        paths.between((A,), (B,), 80, 6, family=6)


def test_from_what_is_no_pod_nothing_is_followed() -> None:
    one = paths.between(paths.named("192.0.2.5", (A, B)), (B,), 80, 6)[0]
    assert (one.question(), one.well) == (None, True)
    assert "packets are followed from pods alone" in one.ends


def test_a_pod_that_speaks_to_itself() -> None:
    """By its own address, or as a backend of the Service that it asks."""
    one = path(A)
    choice = ServiceChoice(backends=((A.address, 80), (B.address, 80)), count=2)
    asked = path(End(name="", address=VIRTUAL)).reported(ProbeResult(service=choice))
    each = paths.of_backends(asked, {A.address: A, B.address: B})
    for itself in (one, each[0]):
        assert (itself.question(), itself.well) == (None, True)
        assert "its packets stay on its own loopback" in itself.ends
    assert each[1].question() is not None


def test_ends_by_name_and_by_address() -> None:
    assert paths.named("shop/a", (A6, B, A)) == (A, A6)
    assert paths.named("10.244.2.2", (A, B)) == (B,)
    assert paths.named("192.0.2.5", (A, B)) == (End(name="", address=ip_address("192.0.2.5")),)
    assert paths.named("shop/c", (A, B)) == ()


def pod(*, host_network: bool = False) -> Pod:
    return Pod(namespace="shop", name="c", uid="u", node="n3", host_network=host_network)


@pytest.mark.parametrize(
    ("complaint", "kind", "said"),
    [
        (paths.no_source("shop/c", None), Declined, "there is no pod shop/c"),
        (paths.no_source("shop/c", pod(host_network=True)), Usage, "is in the network of node n3: its packets are"),
        (paths.no_source("shop/c", pod()), Declined, "has no address in the mesh yet"),
        (paths.no_target("shop/c", None), Declined, "there is neither a pod nor a Service shop/c"),
        (paths.no_target("shop/c", pod(host_network=True)), Usage, "it is reached by the node's address"),
        (paths.no_target("shop/c", pod()), Declined, "has no address in the mesh yet"),
    ],
)
def test_ends_that_cannot_be_followed(complaint: Complaint, kind: type[Complaint], said: str) -> None:
    assert isinstance(complaint, kind)
    assert said in complaint.wrong
    assert complaint.remedy


def test_the_addresses_of_a_service() -> None:
    service = Service(namespace="shop", name="web", uid="u", ports=(ServicePort("http", 6, 80),))
    with pytest.raises(Usage, match="has no cluster IP"):
        paths.service_ends(service, 80, 6)
    served = msgspec.structs.replace(service, cluster_ips=(VIRTUAL,))
    assert paths.service_ends(served, 80, 6) == (End(name="", address=VIRTUAL),)
    with pytest.raises(Usage, match="has no port 80/udp") as refused:
        paths.service_ends(served, 80, 17)
    assert "80/tcp" in refused.value.remedy


def finding(about: str, *affects: str) -> Finding:
    return Finding(
        code=about, fault="policy", about=about, cause="because", expected=Expected(text="this"), observed=(), fixes=(),
        affects=affects,
    )  # fmt: skip


def test_findings_about_others_are_left_out() -> None:
    found = [
        finding(about)
        for about in ("Node n1", "Node n2", "Node n3", "Pair n1 n2", "Pair n1 n3", "Pod shop/b", "Pod shop/c",
                      "Service shop/b", "Service shop/web", "NetworkPolicy shop/deny", "IPPool default")
    ]  # fmt: skip
    found.append(finding("Node n4", "Pair n1 n2"))
    answer = Answered(user="routing-n1", findings=Findings(at_ms=0, findings=tuple(found)), asked_ms=0, came_ms=1)
    asked = DoctorRequest(kind="connection", source="shop/a", destination="shop/b", port=80)
    kept = of_connection(diagnosis(asked, [answer], (), 0), (path(),))
    about = {one.finding.code for one in kept.causes} | {
        under.finding.code for one in kept.causes for under in one.consequences
    }
    assert about == {
        "Node n1", "Node n2", "Pair n1 n2", "Pod shop/b", "Service shop/b", "NetworkPolicy shop/deny", "IPPool default",
        "Node n4",
    }  # fmt: skip


def test_a_connection_is_well_when_nothing_is_found_and_nothing_ends_it() -> None:
    report = diagnosis(DoctorRequest(kind="connection", destination="shop/b"), [], (), 0)
    assert of_connection(report, (path(),)).well
    assert not of_connection(report, (path().reported(ProbeResult(refused="no")),)).well


def test_a_page_says_who_chose_and_which_way() -> None:
    """Of a Service with one backend, by the stack: no chance, and no model that no program took."""
    choice = ServiceChoice(backends=((B.address, 8080),), count=1, affinity_seconds=60)
    one = path(End(name="", address=VIRTUAL)).reported(ProbeResult(service=choice))
    (one,) = paths.of_backends(one, {B.address: B})
    out = hop("leaves", "stack", frame=b"f", device="eth0", model="host-gw")
    one = one.reported(ProbeResult(hops=(out,))).reported(ProbeResult(hops=THERE, listener=LISTENS))
    said = [str(row[3].text if isinstance(row[3], Cell) else row[3]) for row in paths.tables((one,))[0].rows]
    assert said == [
        "10.96.0.9:80 is a Service's: its only backend, the same for 60 s",
        "by eth0",
        "a socket listens",
        "no route",
    ]
