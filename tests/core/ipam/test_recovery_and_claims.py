"""What is given when memory was lost, and who holds a kept address: tables."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from proto.addresses import IPAM_HOLDER, Block, BlockReport, Claim, OwnerRecord
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
    judge_reported,
    rebuilt,
    sweep,
)
from services.ipam.core.pools import judge_pools
from services.ipam.core.recovery import GiveUp, Keep, Write, adopted, judge_report, waiting_for

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
        (node("n2", "dead", "10.0.0.0/26"), [], ["10.0.0.0/26 n2 1"]),
        (node("n2", "dead", "10.0.0.0/26"), [block("10.0.0.0/26", "n1")], []),
        (node("n2", "dead", "10.0.0.0/26"), [block("10.0.0.0/25", "n1")], []),
        (node("n2", "dead", "0.0.0.0/0"), [], []),
        (node("n2", "ready", "10.0.0.0/26"), [], []),
    ],
    ids=["adopted", "another-has-it", "another-has-a-part", "not-a-block", "alive"],
)
def test_a_dead_nodes_annotation_is_adopted(dead: Node, known: list[Block], written: list[str]) -> None:
    pools = judge_pools([IPPool(name="p", cidr=ip_network("10.0.0.0/16"), block_size=26)])
    writes = adopted([dead], [], EPOCH, {b.cidr: b for b in known}, pools)
    assert [f"{w.block.cidr} {w.block.node} {w.block.epoch}" for w in writes] == written
    assert all(w.block.pool == "p" for w in writes)


@pytest.mark.parametrize(
    ("reported", "known", "outcome"),
    [
        (block("10.0.0.0/26", "n1"), [], "write 5"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "n1")], "keep 5"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "n1", 7)], "keep 7"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "n1", 1)], "write 5"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "n2", 4)], "write 5"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "n2", 5)], "give-up"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "n2", 9)], "give-up"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "", 5)], "give-up"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/26", "", 4)], "write 5"),
        (block("10.0.0.0/26", "n1"), [block("10.0.0.0/25", "n2", 1)], "give-up"),
        (block("10.0.0.0/26", "n2"), [], "give-up"),
        (block("0.0.0.0/0", "n1"), [], "give-up"),
    ],
    ids=[
        "forgotten", "known", "granted-again", "annotation-only", "other-is-older", "tie", "other-is-newer",
        "taken-back", "free-and-older", "overlap", "in-anothers-name", "not-a-block",
    ],
)  # fmt: skip
def test_a_report_against_the_record(reported: Block, known: list[Block], outcome: str) -> None:
    said = ""
    match judge_report(reported, "n1", "uid-n1", {b.cidr: b for b in known}):
        case Write(written):
            said = f"write {written.epoch}"
        case Keep(kept):
            said = f"keep {kept.epoch}"
        case GiveUp() as given:
            said = "give-up"
            assert given.cidr == reported.cidr
    assert said == outcome


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
    ("asked", "known", "released"),
    [
        (("c-old", "eth0", "n"), claim(), True),
        (("c-old", "eth0", "another"), claim(), False),
        (("c-new", "eth0", "n"), claim(), False),
        (("c-old", "eth1", "n"), claim(), False),
        (("c-old", "eth0", "n"), None, False),
    ],
)
def test_a_release_names_all_or_does_nothing(asked: tuple[str, str, str], known: Claim | None, released: bool) -> None:
    container, interface, nonce = asked
    judged = judge_release(ClaimRelease(ADDRESS, container, interface, nonce), known)
    assert (judged is not None) is released
    if judged is not None:
        assert (judged.node, judged.pod_uid, judged.epoch, judged.owner) == ("", "", 10, DB0)


@pytest.mark.parametrize(
    ("known", "epoch"),
    [
        (None, 20),
        (claim(), 20),
        (Claim(ADDRESS, DB0, "n2", "x", "c", "eth0", 30, "n"), None),
        (Claim(ADDRESS, DB0, "n1", "new", "", "", 99, RECOVERED), 99),
        (Claim(ADDRESS, DB0, "", "", "", "", 99, RECOVERED), 99),
        (Claim(ADDRESS, DB0, "n2", "other", "", "", 99, RECOVERED), None),
    ],
    ids=["forgotten", "older", "newer", "same-pod-rebuilt", "nobody-rebuilt", "another-pod-rebuilt"],
)
def test_a_reported_claim_against_the_record(known: Claim | None, epoch: int | None) -> None:
    judged = judge_reported(Claim(ADDRESS, DB0, "n1", "new", "c-new", "eth0", 20, "mine"), known)
    assert (judged.epoch if judged else None) == epoch
    assert judged is None or judged.container == "c-new"


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


def test_a_look_away_begins_the_wait_anew() -> None:
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
