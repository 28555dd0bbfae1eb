"""What is given when memory was lost, and who holds a kept address: tables."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from kit.pools import judge_pools
from proto.addresses import CONTESTED, IPAM_HOLDER, Block, BlockReport, Claim, OwnerRecord
from proto.objects import IPPool, Node, Owner, Pod
from proto.requests import ClaimRelease, ClaimRequest
from services.ipam.core.claims import (
    INTENDS,
    RECOVERED,
    Elsewhere,
    Held,
    Hold,
    Stands,
    free_address,
    judge_claim,
    judge_release,
    names_anothers,
    rebuilt,
    sweep,
)
from services.ipam.core.evidence import Evidence
from services.ipam.core.recovery import (
    GiveUp,
    Keep,
    Reporter,
    Write,
    adopted,
    judge_report,
    judge_reported,
    kept_blocks,
    nobody,
    settled,
    silence,
    waiting_for,
)

EPOCH = "e2"


def node(name: str, state: str = "ready", blocks: str = "") -> Node:
    cidrs = tuple(ip_network(text) for text in blocks.split())
    return Node(name=name, uid=f"uid-{name}", ready=state == "ready", blocks=cidrs)


def block(cidr: str, holder: str, epoch: int = 5) -> Block:
    return Block(ip_network(cidr), "p", holder, f"uid-{holder}", epoch, "n")


@pytest.mark.parametrize(
    ("nodes", "reports", "waited_for"),
    [
        ([], [], ()),
        ([node("n1")], [], ("n1",)),
        ([node("n1")], [("n1", EPOCH)], ()),
        ([node("n1")], [("n1", "e1")], ("n1",)),
        ([node("n1"), node("n2", "dead", "10.0.0.0/26")], [("n1", EPOCH)], ()),
        ([node("n1"), node("n2", "dead")], [("n1", EPOCH)], ("n2",)),
        ([node("n1"), node("n2", "ready", "10.0.0.0/26")], [("n1", EPOCH)], ("n2",)),
        ([node("n2"), node("n1")], [], ("n1", "n2")),
    ],
    ids=[
        "no-nodes",
        "silent",
        "reported",
        "of-another-epoch",
        "dead-annotated",
        "dead-unknown",
        "alive-annotated",
        "both",
    ],
)
def test_who_is_waited_for(nodes: list[Node], reports: list[tuple[str, str]], waited_for: tuple[str, ...]) -> None:
    assert waiting_for(nodes, [BlockReport(name, epoch) for name, epoch in reports], EPOCH) == waited_for


@pytest.mark.parametrize(
    ("dead", "known", "written"),
    [
        (node("n2", "dead", "10.0.0.0/26"), [], ["10.0.0.0/26 n2 60"]),
        (node("n2", "dead", "10.0.0.0/26"), [block("10.0.0.0/26", "n1")], []),
        (node("n2", "dead", "10.0.0.0/26"), [block("10.0.0.0/25", "n1")], []),
        (node("n2", "dead", "0.0.0.0/0"), [], []),
        (node("n2", "ready", "10.0.0.0/26"), [], []),
    ],
    ids=["adopted", "another-has-it", "another-has-a-part", "not-a-block", "alive"],
)
def test_a_dead_nodes_annotation_is_adopted(dead: Node, known: list[Block], written: list[str]) -> None:
    pools = judge_pools([IPPool(name="p", cidr=ip_network("10.0.0.0/16"), block_size=26)])
    writes = adopted([dead], [], EPOCH, {b.cidr: b for b in known}, pools, now=60)
    assert [f"{w.block.cidr} {w.block.node} {w.block.epoch}" for w in writes] == written
    assert all(w.block.pool == "p" for w in writes)


@pytest.mark.parametrize(
    ("name", "known", "written"),
    [("n2", [], ["10.0.0.0/26 n2 60"]), ("n2", [block("10.0.0.0/26", "n1")], []), ("n3", [], [])],
    ids=["adopted", "another-has-it", "another-is-overdue"],
)
def test_an_overdue_nodes_annotation_is_adopted(name: str, known: list[Block], written: list[str]) -> None:
    pools = judge_pools([IPPool(name="p", cidr=ip_network("10.0.0.0/16"), block_size=26)])
    silent = node("n2", "ready", "10.0.0.0/26")
    writes = adopted([silent], [], EPOCH, {b.cidr: b for b in known}, pools, now=60, overdue={name})
    assert [f"{w.block.cidr} {w.block.node} {w.block.epoch}" for w in writes] == written


@pytest.mark.parametrize(
    ("silent", "seconds", "fault", "outlook"),
    [
        (node("n2"), 70, "node n2 is Ready, but its dataplane has not said for 70 s", "or 120 s have passed"),
        (node("n2", "dead"), 70, "node n2 is not ready, and it has not said for 70 s", "or 120 s have passed"),
        (node("n2"), 120, "node n2 is Ready, but its dataplane has not said for 120 s", "blocks counts"),
    ],
    ids=["ready", "dead-unknown", "overdue"],
)
def test_a_silent_node_is_named_with_what_becomes_of_it(silent: Node, seconds: int, fault: str, outlook: str) -> None:
    reported, remedy = silence("n2", {"n2": silent}, seconds, 120)
    assert reported.startswith(fault)
    assert outlook in reported
    assert remedy == "start the dataplane of n2 and see that it reaches NATS"


@pytest.mark.parametrize(
    ("known", "annotated", "address", "written"),
    [
        ([], "", "10.0.0.70", ["10.0.0.64/26 _ipam 60"]),
        ([], "10.0.0.64/26", "10.0.0.70", []),
        ([block("10.0.0.64/26", "n1")], "", "10.0.0.70", []),
        ([block("10.0.0.64/26", "", epoch=90)], "", "10.0.0.70", ["10.0.0.64/26 _ipam 91"]),
        ([block("10.0.0.0/25", "n1")], "", "10.0.0.70", []),
        ([], "", "10.9.0.70", []),
    ],
    ids=["kept", "annotated", "on-record", "was-free", "a-part-is-another's", "of-no-pool"],
)
def test_a_block_that_only_running_pods_show_becomes_ipams(
    known: list[Block], annotated: str, address: str, written: list[str]
) -> None:
    """Their node is silent, and no Node's annotation names it: a kept address, which nobody else may be given."""
    pools = judge_pools([IPPool(name="p", cidr=ip_network("10.0.0.0/16"), block_size=26)])
    nodes = [node("n1"), node("n2", "ready", annotated)]
    found = kept_blocks(evidence([*nodes, web("n2", address)]), nodes, {b.cidr: b for b in known}, pools, now=60)
    assert [f"{w.block.cidr} {w.block.node} {w.block.epoch}" for w in found] == written


BLOCK = "10.0.0.0/26"


def evidence(api: Sequence[Node | Pod]) -> Evidence:
    nodes = {one.name: one for one in api if isinstance(one, Node)}
    return Evidence(nodes, {one.uid: one for one in api if isinstance(one, Pod)})


def web(on: str, address: str = "10.0.0.9") -> Pod:
    return Pod("shop", f"web-{on}", f"uid-web-{on}", on, addresses=(ip_address(address),), phase="Running")


@pytest.mark.parametrize(
    ("reported", "known", "api", "complete", "outcome"),
    [
        (block(BLOCK, "n1"), [], [], False, "n1 60"),
        (block(BLOCK, "n1", 1 << 62), [], [], False, "n1 60"),
        (block(BLOCK, "n1"), [], [], True, "n1 60"),
        (block(BLOCK, "n1", 1 << 62), [block(BLOCK, "n1", 7)], [], False, "keep 7"),
        (block(BLOCK, "n1", 1 << 62), [block(BLOCK, "n2", 4)], [], True, "give-up"),
        (block(BLOCK, "n1", 1 << 62), [block(BLOCK, IPAM_HOLDER, 4)], [], True, "give-up"),
        (block(BLOCK, "n1", 1 << 62), [block(BLOCK, "n2", 4)], [node("n1", blocks=BLOCK)], True, "give-up"),
        (block(BLOCK, "n1"), [block(BLOCK, "n2", 4)], [], False, "_contested 60"),
        (block(BLOCK, "n1"), [block(BLOCK, "n2", 4)], [node("n1", blocks=BLOCK)], False, "n1 60"),
        (block(BLOCK, "n1"), [block(BLOCK, "n2", 99)], [web("n1")], False, "n1 100"),
        (block(BLOCK, "n1", 1 << 62), [block(BLOCK, "n2", 4)], [node("n2", blocks=BLOCK)], False, "give-up"),
        (block(BLOCK, "n1", 1 << 62), [block(BLOCK, "n2", 4)], [web("n2")], False, "give-up"),
        (block(BLOCK, "n1"), [], [node("n2", blocks=BLOCK)], False, "give-up"),
        (block(BLOCK, "n1"), [], [node("n2", blocks="10.0.0.0/25")], False, "give-up"),
        (block(BLOCK, "n1"), [], [web("n2")], False, "give-up"),
        (block(BLOCK, "n1"), [], [web("n2"), node("n1", blocks=BLOCK)], False, "n1 60"),
        (block(BLOCK, "n1"), [], [web("n1"), web("n2", "10.0.0.8")], False, "_contested 60"),
        (block(BLOCK, "n1"), [], [web("n1"), node("n1", blocks=BLOCK), node("n2", blocks=BLOCK)], False, "n1 60"),
        (block(BLOCK, "n1"), [], [node("n1", blocks=BLOCK), node("n2", blocks=BLOCK)], False, "_contested 60"),
        (block(BLOCK, "n1"), [block(BLOCK, CONTESTED, 4)], [], False, "give-up"),
        (block(BLOCK, "n1"), [block(BLOCK, CONTESTED, 4)], [web("n1")], False, "n1 60"),
        (block(BLOCK, "n1"), [block(BLOCK, IPAM_HOLDER, 4)], [], False, "_contested 60"),
        (block(BLOCK, "n1"), [block(BLOCK, IPAM_HOLDER, 4)], [web("n1"), web("n2", "10.0.0.8")], False, "give-up"),
        (block(BLOCK, "n1"), [block(BLOCK, "", 70)], [], True, "n1 71"),
        (block(BLOCK, "n1"), [block("10.0.0.0/25", "n2", 1)], [], False, "give-up"),
        (block(BLOCK, "n2"), [], [], False, "give-up"),
        (block("0.0.0.0/0", "n1"), [], [], False, "give-up"),
    ],
)  # fmt: skip
def test_a_report_against_the_record(
    reported: Block, known: list[Block], api: list[Node | Pod], complete: bool, outcome: str
) -> None:
    seen = evidence(api)
    said = ""
    reporter = Reporter(node="n1", uid="uid-n1", pool="p")
    match judge_report(reported, reporter, {b.cidr: b for b in known}, seen, complete=complete, now=60):
        case Write(written):
            said = f"{written.node} {written.epoch}"
            assert written.node_uid == ("uid-n1" if written.node == "n1" else "")
        case Keep(kept):
            said = f"keep {kept.epoch}"
        case GiveUp() as given:
            said = "give-up"
            assert given.cidr == reported.cidr
    assert said == outcome


def test_what_a_node_may_not_take_it_only_gets_with_evidence() -> None:
    reporter = Reporter(node="n1", uid="uid-n1", may_take=False)
    for pods, taken in (({}, False), ({"u": web("n1")}, True)):
        judged = judge_report(block(BLOCK, "n1"), reporter, {}, Evidence({}, pods), complete=False, now=60)
        assert isinstance(judged, Write) is taken


@pytest.mark.parametrize("nonce", ["deserted-x", "annotation", "", "n" * 300])
def test_a_report_brings_no_nonce_that_means_something(nonce: str) -> None:
    foul = Block(ip_network(BLOCK), "p", "n1", "uid-n1", 5, nonce)
    judged = judge_report(foul, Reporter(node="n1", uid="uid-n1"), {}, Evidence({}, {}), complete=False, now=60)
    assert isinstance(judged, Write)
    assert judged.block.nonce == "reported"


def test_a_contested_block_is_settled_by_the_api() -> None:
    contested = [block(BLOCK, CONTESTED, 7)]
    uids = {"n1": "uid-n1", "n2": "uid-n2"}
    for api, claims, holder in (
        ([], [], ""),
        ([web("n1")], [], "n1"),
        ([web("n1"), web("n2", "10.0.0.8")], [], ""),
        ([web("n1"), node("n2", blocks=BLOCK)], [], "n2"),
        ([web("n3")], [], ""),
        ([web("n1")], [ip_address("10.0.0.9")], IPAM_HOLDER),
    ):
        seen = Evidence(
            {one.name: one for one in api if isinstance(one, Node)},
            {one.uid: one for one in api if isinstance(one, Pod)},
        )
        writes = settled(contested, claims, seen, uids, now=60)
        assert [write.block.node for write in writes] == ([holder] if holder else [])
        assert all(write.block.epoch == 60 and write.over == contested[0] for write in writes)


DB0 = Owner("shop", "StatefulSet", "db", 0)
ADDRESS = ip_address("10.0.1.1")


def request(node_name: str = "n1", uid: str = "new", container: str = "c-new") -> ClaimRequest:
    return ClaimRequest(
        owner=DB0, family=4, node=node_name, pod_uid=uid, container=container, interface="eth0", nonce="asked"
    )


def claim(on: str = "n2", uid: str = "old", container: str = "c-old", owner: Owner = DB0, nonce: str = "n") -> Claim:
    return Claim(ADDRESS, owner, on, uid, container, "eth0" if container else "", 10, nonce)


def pod(uid: str, on: str, phase: str = "Running", *, terminating: bool = False) -> Pod:
    return Pod(namespace="shop", name="db-0", uid=uid, node=on, owner=DB0, phase=phase, terminating=terminating)


@pytest.mark.parametrize(
    ("known", "pods", "outcome"),
    [
        (None, [], "hold 50"),
        (claim("n1", "new", "c-new"), [], "stands"),
        (claim("n1", "new", "c-before"), [pod("new", "n1")], "hold 50"),
        (claim("", "", ""), [], "hold 50"),
        (claim(), [], "hold 50 from n2"),
        (claim(), [pod("old", "n2")], "held"),
        (claim(), [pod("old", "n2", terminating=True)], "held"),
        (claim(), [pod("old", "n2", "Succeeded")], "hold 50 from n2"),
        (claim(), [pod("old", "n2", "Failed")], "hold 50 from n2"),
        (claim(owner=Owner("shop", "StatefulSet", "db", 1)), [], "elsewhere"),
    ],
    ids=[
        "first", "asked-twice", "new-sandbox", "let-go", "holder-gone", "holder-runs", "holder-is-being-deleted",
        "holder-done", "holder-failed", "anothers",
    ],
)  # fmt: skip
def test_who_gets_the_claim(known: Claim | None, pods: list[Pod], outcome: str) -> None:
    by_uid: dict[str, Pod | None] = {each.uid: each for each in pods}
    said = ""
    match judge_claim(request(), ADDRESS, known, by_uid.get, now=50):
        case Hold(held, moved_from):
            said = f"hold {held.epoch}" + (f" from {moved_from}" if moved_from else "")
            assert (held.node, held.pod_uid, held.container, held.nonce) == ("n1", "new", "c-new", "asked")
        case Stands():
            said = "stands"
        case Held(why):
            said = "held"
            assert "still exists" in why
        case Elsewhere():
            said = "elsewhere"
    assert said == outcome


def test_the_epoch_rises_even_when_the_clock_goes_back() -> None:
    judged = judge_claim(request(), ADDRESS, claim(), lambda _: None, now=3)
    assert isinstance(judged, Hold)
    assert judged.claim.epoch == 11


@pytest.mark.parametrize(
    ("sender", "asked", "known", "released"),
    [
        ("n2", ("c-old", "eth0", "n"), claim(), True),
        ("n2", ("c-old", "eth0", "another"), claim(), False),
        ("n2", ("c-new", "eth0", "n"), claim(), False),
        ("n2", ("c-old", "eth1", "n"), claim(), False),
        ("n2", ("c-old", "eth0", "n"), None, False),
        ("n1", ("c-old", "eth0", "n"), claim(), False),
    ],
)
def test_a_release_names_all_or_does_nothing(
    sender: str, asked: tuple[str, str, str], known: Claim | None, released: bool
) -> None:
    container, interface, nonce = asked
    request = ClaimRelease(ADDRESS, container, interface, nonce)
    judged = judge_release(request, sender, known)
    assert (judged is not None) is released
    lies = known is not None and names_anothers(request, sender, known)
    assert lies is (sender == "n1"), "a nonce is there for all to read"
    if judged is not None:
        assert (judged.node, judged.pod_uid, judged.epoch, judged.owner) == ("", "", 10, DB0)


MINE = pod("new", "n1")
SHOWN = replace(MINE, addresses=(ADDRESS,))
OTHERS = Pod("shop", "db-9", "other", "n2", owner=Owner("shop", "StatefulSet", "db", 9), phase="Running")
ADDRESSED = replace(OTHERS, addresses=(ADDRESS,))
RECOVERED_MINE = Claim(ADDRESS, DB0, "n1", "new", "", "", 99, RECOVERED)


@pytest.mark.parametrize(
    ("pods", "known", "complete", "outcome"),
    [
        ([MINE], None, False, "db 60"),
        ([SHOWN], None, False, "db 60"),
        ([SHOWN], None, True, "db 60"),
        ([MINE], RECOVERED_MINE, True, "db 99"),
        ([MINE], replace(RECOVERED_MINE, node="", pod_uid=""), False, "db 99"),
        ([], None, False, "nobody 60"),
        ([], None, True, "stays"),
        ([], claim("n2", "other"), False, "stays"),
        ([replace(MINE, phase="Failed")], None, False, "nobody 60"),
        ([MINE], Claim(ADDRESS, DB0, "n1", "new", "c-new", "eth0", 20, "mine"), False, "stays"),
        ([MINE, ADDRESSED], None, False, "lie"),
        ([replace(MINE, addresses=(ip_address("10.0.1.2"),))], None, False, "lie"),
        ([replace(MINE, node="n2")], None, False, "lie"),
        ([replace(MINE, owner=OTHERS.owner)], None, False, "lie"),
        ([MINE, OTHERS], claim("n2", "other", owner=OTHERS.owner or DB0), False, "lie"),
        ([SHOWN, OTHERS], claim("n2", "other", owner=OTHERS.owner or DB0), False, "db 60"),
        ([SHOWN, OTHERS], claim("n2", "other", owner=OTHERS.owner or DB0), True, "lie"),
        ([SHOWN, ADDRESSED], claim("n2", "other", owner=OTHERS.owner or DB0), False, "lie"),
    ],
)
def test_a_reported_claim_against_the_record(
    pods: list[Pod], known: Claim | None, complete: bool, outcome: str
) -> None:
    by_uid = {each.uid: each for each in pods}
    reported = Claim(ADDRESS, DB0, "n1", "new", "c-new", "eth0", 1 << 62, "mine")
    judged = judge_reported(reported, known, "n1", Evidence({}, by_uid), by_uid, complete=complete, now=60)
    if isinstance(judged, Claim):
        who = "nobody" if judged.owner == nobody("n1") else judged.owner.name
        assert (f"{who} {judged.epoch}", judged.container, judged.node) == (outcome, "c-new", "n1")
    else:
        assert ("stays" if judged is None else "lie") == outcome
    assert isinstance(
        judge_reported(reported, None, "n2", Evidence({}, by_uid), by_uid, complete=False, now=60), str
    ), "in another's name"


def test_an_address_without_owner_directs_nobody() -> None:
    kept = replace(claim("n1", "gone"), owner=nobody("n1"))
    assert rebuilt({}, {ADDRESS: kept}, [], {}, now=60) == ((), ())


def owner_record(owner: Owner = DB0, nonce: str = "n") -> OwnerRecord:
    return OwnerRecord(owner, ADDRESS, "p", nonce)


@pytest.mark.parametrize(
    ("owners", "claims", "pods", "after", "found"),
    [
        ([owner_record()], [claim("", "", "")], [], 3601, "forget"),
        ([owner_record()], [claim("", "", "")], [], 3500, ""),
        ([owner_record()], [claim("n2", "old")], [pod("old", "n2")], 9999, ""),
        ([owner_record()], [claim("n2", "old")], [pod("new", "n1")], 131, "let-go"),
        ([owner_record()], [claim("n2", "old")], [pod("new", "n1")], 129, ""),
        ([], [claim("", "", "")], [], 131, "free"),
        ([], [claim("", "", "")], [], 129, ""),
        ([], [claim("n2", "old")], [pod("old", "n2")], 0, "restore"),
    ],
    ids=["no-pods", "not-yet", "in-use", "holder-gone", "just-gone", "ownerless", "resting", "ownerless-in-use"],
)
def test_the_sweep(owners: list[OwnerRecord], claims: list[Claim], pods: list[Pod], after: float, found: str) -> None:
    by_owner = {(record.owner, 4): record for record in owners}
    by_address = {each.address: each for each in claims}
    first = sweep(by_owner, by_address, pods, {}, now=0.0, grace=3600.0, cooldown=130.0)
    assert (first.forget, first.let_go, first.free) == ((), (), ()), "never at first sight"
    second = sweep(by_owner, by_address, pods, first.since, now=after, grace=3600.0, cooldown=130.0)
    said = [
        name
        for name, things in (
            ("forget", second.forget),
            ("let-go", second.let_go),
            ("free", second.free),
            ("restore", second.restore),
        )
        if things
    ]
    assert said == ([found] if found else [])


def test_a_look_away_begins_the_wait_again() -> None:
    claims = {ADDRESS: claim("", "", "")}
    first = sweep({}, claims, [], {}, now=0.0, grace=3600.0, cooldown=130.0)
    owned = sweep({(DB0, 4): owner_record()}, claims, [], first.since, now=100.0, grace=3600.0, cooldown=130.0)
    third = sweep({}, claims, [], owned.since, now=140.0, grace=3600.0, cooldown=130.0)
    assert third.free == ()


@pytest.mark.parametrize(
    ("cidr", "taken", "chosen"),
    [
        ("10.0.0.0/30", "", "10.0.0.0"),
        ("10.0.0.0/30", "10.0.0.0 10.0.0.1", "10.0.0.2"),
        ("fd00::/126", "", "fd00::1"),
        ("fd00::/126", "fd00::1 fd00::2 fd00::3", ""),
        ("fd00::8/128", "", "fd00::8"),
    ],
)
def test_the_smallest_address_that_a_pod_may_have(cidr: str, taken: str, chosen: str) -> None:
    own = block(cidr, IPAM_HOLDER)
    found = free_address([own], {}, {ip_address(text) for text in taken.split()}, set())
    assert (str(found[0]) if found else "") == chosen


def test_one_bucket_is_rebuilt_from_the_other_and_from_running_pods() -> None:
    own = {ip_network("10.0.1.0/26"): block("10.0.1.0/26", IPAM_HOLDER)}
    running = Pod(namespace="shop", name="db-0", uid="u", node="n1", owner=DB0, addresses=(ADDRESS,), phase="Running")
    owners, claims = rebuilt({}, {}, [running], own, now=60)
    assert [(record.owner, record.address) for record in owners] == [(DB0, ADDRESS)]
    assert [(each.node, each.pod_uid, each.epoch) for each in claims] == [("n1", "u", 60)]
    assert rebuilt({(DB0, 4): owners[0]}, {ADDRESS: claims[0]}, [running], own, now=61) == ((), ())
    from_claims, _ = rebuilt({}, {ADDRESS: claim()}, [], own, now=60)
    assert [record.address for record in from_claims] == [ADDRESS]
    _, from_owners = rebuilt({(DB0, 4): owner_record()}, {}, [], own, now=60)
    assert [(each.node, each.owner) for each in from_owners] == [("", DB0)]
    _, from_half = rebuilt({(DB0, 4): owner_record(nonce=INTENDS + "x")}, {}, [], own, now=60)
    assert from_half == (), "an intention alone is no claim"
    away = Pod(namespace="shop", name="web-1", uid="w", node="n1", addresses=(ip_address("10.0.9.9"),), phase="Running")
    assert rebuilt({}, {}, [away], own, now=60) == ((), ()), "an address of a node's block is not a kept one"
