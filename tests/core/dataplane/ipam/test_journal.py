"""The node's address ledger: what a newcomer reads first, then properties over every history and every crash."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.addresses import Block, Claim
from proto.net import Family
from proto.objects import Owner
from proto.requests import ClaimRelease
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.ipam.journal import (
    COOLDOWN,
    Ask,
    Clash,
    Grant,
    Ledger,
    NeedsBlock,
    adopt,
    allocate,
    change,
    collect,
    give_block,
    hold_block,
    hold_claim,
    learn,
    next_sequence,
    release,
    settle,
    snapshot,
)
from services.dataplane.core.ipam.journal_frames import Damaged, read_frames, write_frame
from services.dataplane.core.ipam.journal_records import Booted, Opened, Record

BLOCK4 = Block(ip_network("10.244.0.0/30"), "v4", "n1", "u1", 5, "b4")
FAMILIES: list[tuple[Family, ...]] = [(4,), (6,), (4, 6)]
BLOCK6 = Block(ip_network("fd00::/126"), "v6", "n1", "u1", 6, "b6")


def ask(number: int, *, uid: str = "", identity: int = 300) -> Ask:
    return Ask(
        container=f"c{number}",
        interface="eth0",
        namespace="shop",
        pod=f"pod-{number}",
        pod_uid=uid or f"uid-{number}",
        nonce=f"n{number}",
        identity=identity,
    )


def ledger(*blocks: Block, boot: str = "boot-1") -> Ledger:
    made = Ledger()
    for record in (Opened("n1"), Booted(boot, 0.0)):
        made.apply(record)
    for block in blocks:
        do(made, hold_block(made, block))
    return made


D = TypeVar("D", bound=Grant | NeedsBlock | Clash | tuple[Record, ...])


def do(on: Ledger, decided: D) -> D:
    """Make a decision true; returns it."""
    records: tuple[Record, ...] = ()
    if isinstance(decided, Grant):
        records = decided.records
    elif isinstance(decided, tuple):
        records = decided
    for record in records:
        on.apply(record)
    return decided


def granted(decided: Grant | NeedsBlock | Clash) -> Grant:
    assert isinstance(decided, Grant), decided
    return decided


def addresses(decided: Grant | NeedsBlock | Clash) -> list[str]:
    return [str(lease.address) for lease in granted(decided).leases]


def test_a_dual_stack_pod_has_one_address_of_each_family() -> None:
    held = ledger(BLOCK4, BLOCK6)
    first = granted(do(held, allocate(held, (4, 6), ask(1), 10.0)))
    assert addresses(first) == ["10.244.0.0", "fd00::1"], "an IPv6 block's first address is the routers'"
    assert [lease.epoch for lease in first.leases] == [5, 6], "the epoch of the block it comes from"
    again = allocate(held, (4, 6), ask(1), 11.0)
    assert again == Grant(leases=first.leases), "asked twice: the same, and nothing to write down"


def test_the_routers_address_of_an_ipv6_block_is_never_given() -> None:
    held = ledger(BLOCK6)
    assert held.count(6, 10.0).total == 3
    given = [addresses(do(held, allocate(held, (6,), ask(number), 10.0)))[0] for number in range(3)]
    assert given == ["fd00::1", "fd00::2", "fd00::3"]
    assert allocate(held, (6,), ask(9), 10.0) == NeedsBlock(family=6, reason="full", retry_after=0.0)
    assert held.count(6, 10.0).free == 0


@pytest.mark.parametrize("while_held", [True, False])
def test_a_pod_that_has_the_routers_address_keeps_it_and_is_its_last(while_held: bool) -> None:
    held = ledger(BLOCK6)
    do(held, adopt(held, ask(1), [ip_address("fd00::")], 10.0))
    assert granted(allocate(held, (6,), ask(1), 11.0)).leases[0].address == ip_address("fd00::")
    assert (held.count(6, 11.0).total, held.count(6, 11.0).free) == (4, 3)
    if not while_held:
        do(held, give_block(held, BLOCK6.cidr))
    do(held, release(held, ask(1).attachment, 20.0))
    do(held, hold_block(held, BLOCK6))
    after = replayed(snapshot(held, 21.0))
    for on in (held, after):
        assert (on.count(6, 21.0).total, on.count(6, 21.0).free, list(on.resting)) == (3, 3, [])
        given = [addresses(do(on, allocate(on, (6,), ask(number), 20.0 + 2 * COOLDOWN)))[0] for number in (2, 3, 4)]
        assert "fd00::" not in given
        assert isinstance(allocate(on, (6,), ask(9), 20.0 + 2 * COOLDOWN), NeedsBlock)


@pytest.mark.parametrize(("cidr", "given"), [("fd00::4/127", "fd00::4"), ("fd00::4/128", "fd00::4")])
def test_a_block_too_small_to_have_one_is_used_whole(cidr: str, given: str) -> None:
    held = ledger(Block(ip_network(cidr), "v6", "n1", "u1", 6, "b"))
    assert addresses(allocate(held, (6,), ask(1), 10.0)) == [given]


def test_all_or_none() -> None:
    held = ledger(BLOCK4)
    refused = allocate(held, (4, 6), ask(1), 10.0)
    assert refused == NeedsBlock(family=6, reason="no-block", retry_after=0.0)
    assert held.by_address == {}


def test_least_recently_freed_first_and_only_after_its_rest() -> None:
    held = ledger(BLOCK4)
    for number in range(4):
        do(held, allocate(held, (4,), ask(number), 10.0))
    assert allocate(held, (4,), ask(9), 10.0) == NeedsBlock(family=4, reason="full", retry_after=0.0)
    for number, at in ((2, 20.0), (0, 30.0)):
        do(held, release(held, ask(number).attachment, at))
    assert allocate(held, (4,), ask(9), 21.0) == NeedsBlock(family=4, reason="resting", retry_after=COOLDOWN - 1.0)
    assert addresses(do(held, allocate(held, (4,), ask(9), 20.0 + COOLDOWN))) == ["10.244.0.2"]
    assert isinstance(allocate(held, (4,), ask(10), 29.9 + COOLDOWN), NeedsBlock)
    assert addresses(allocate(held, (4,), ask(10), 30.0 + COOLDOWN)) == ["10.244.0.0"]


def test_whose_leaving_not_every_node_knows_is_given_last_of_all() -> None:
    held = ledger(BLOCK4)
    for number in range(3):
        do(held, allocate(held, (4,), ask(number), 10.0))
    for number in (2, 0, 1):
        do(held, release(held, ask(number).attachment, 20.0 + number))
    known = {ip_address("10.244.0.0"), ip_address("10.244.0.1")}
    early, late = 20.0, 30.0 + COOLDOWN
    given = [
        addresses(do(held, allocate(held, (4,), ask(number), at, is_known_to_all=lambda one, _: one in known)))[0]
        for number, at in ((5, early), (6, late), (7, late), (8, late))
    ]
    assert given == ["10.244.0.3", "10.244.0.0", "10.244.0.1", "10.244.0.2"], "never used, known by age, then the rest"


def test_what_every_node_knows_rests_all_the_same() -> None:
    held = ledger(BLOCK4)
    for number in range(4):
        do(held, allocate(held, (4,), ask(number), 10.0))
    do(held, release(held, ask(0).attachment, 20.0))
    resting = allocate(held, (4,), ask(9), 19.0 + COOLDOWN, is_known_to_all=lambda *_: True)
    assert resting == NeedsBlock(family=4, reason="resting", retry_after=1.0)
    do(held, release(held, ask(1).attachment, 30.0))
    one = allocate(held, (4,), ask(9), 20.0 + COOLDOWN, is_known_to_all=lambda one, _: str(one) == "10.244.0.1")
    assert addresses(one) == ["10.244.0.0"], "known to all, but not rested: the one that has rested is given"


def test_after_a_reboot_the_rest_begins_again() -> None:
    held = ledger(BLOCK4)
    for number in range(4):
        do(held, allocate(held, (4,), ask(number), 10.0))
    do(held, release(held, ask(0).attachment, 1_000_000.0))
    held.apply(Booted("boot-2", 3.0))
    assert isinstance(allocate(held, (4,), ask(9), 100.0), NeedsBlock), "the old clock says nothing now"
    assert addresses(allocate(held, (4,), ask(9), 3.0 + COOLDOWN)) == ["10.244.0.0"]


def test_a_claim_is_held_owed_and_settled() -> None:
    held = ledger(BLOCK4)
    claim = Claim(ip_address("10.244.9.1"), Owner("shop", "StatefulSet", "db", 0), "n1", "uid-1", "c1", "eth0", 7, "cn")
    grant = granted(do(held, hold_claim(held, claim, ask(1), 10.0)))
    assert (grant.leases[0].claimed, grant.leases[0].epoch, grant.leases[0].nonce) == (True, 7, "cn")
    assert hold_claim(held, claim, ask(1), 11.0) == Grant(leases=grant.leases)
    assert isinstance(hold_claim(held, claim, ask(2), 11.0), Clash), "another interface has it"
    do(held, release(held, ask(1).attachment, 20.0))
    owed = ClaimRelease(address=claim.address, container="c1", interface="eth0", nonce="cn")
    assert list(held.owed.values()) == [owed]
    do(held, settle(held, owed))
    assert held.owed == {}
    inside = Claim(ip_address("10.244.0.1"), claim.owner, "n1", "uid-3", "c3", "eth0", 7, "x")
    assert isinstance(hold_claim(held, inside, ask(3), 30.0), Clash), "an address of an own block is no claim"


@pytest.mark.parametrize(
    ("block", "outcome"),
    [
        (BLOCK4, "nothing"),
        (Block(BLOCK4.cidr, "v4", "n1", "u1", 9, "again"), "held"),
        (Block(BLOCK4.cidr, "v4", "n1", "u1", 4, "older"), "nothing"),
        (Block(ip_network("10.244.0.4/30"), "v4", "n2", "u2", 5, "x"), "clash"),
        (Block(ip_network("10.244.0.0/29"), "v4", "n1", "u1", 5, "x"), "clash"),
        (Block(ip_network("10.244.0.4/30"), "v4", "n1", "u1", 5, "x"), "held"),
    ],
)
def test_blocks_that_may_be_held(block: Block, outcome: str) -> None:
    decided = hold_block(ledger(BLOCK4), block)
    said = "clash" if isinstance(decided, Clash) else "held" if decided else "nothing"
    assert said == outcome


def test_a_given_block_gives_nothing_more_but_its_pods_go_on() -> None:
    held = ledger(BLOCK4)
    lease = granted(do(held, allocate(held, (4,), ask(1), 10.0))).leases[0]
    do(held, give_block(held, BLOCK4.cidr))
    assert isinstance(allocate(held, (4,), ask(2), 11.0), NeedsBlock)
    assert granted(allocate(held, (4,), ask(1), 11.0)).leases == (lease,)
    do(held, release(held, ask(1).attachment, 12.0))
    do(held, hold_block(held, BLOCK4))
    others = [do(held, allocate(held, (4,), ask(number), 13.0)) for number in range(2, 5)]
    assert addresses(others[0]) == ["10.244.0.1"], "what rested when the block was away still rests"
    assert isinstance(allocate(held, (4,), ask(9), 13.0), NeedsBlock)


def test_a_closed_block_gives_no_new_address_and_its_pods_keep_theirs() -> None:
    other = Block(ip_network("10.244.9.0/30"), "v4", "n1", "u1", 5, "b9")
    held = ledger(BLOCK4, other)
    before = do(held, allocate(held, (4,), ask(1), 0.0))
    do(held, allocate(held, (4,), ask(2), 0.0))
    do(held, release(held, ask(2).attachment, 1.0))
    closed = {BLOCK4.cidr}
    later = 2.0 + COOLDOWN
    again = allocate(held, (4,), ask(1), later, COOLDOWN, closed)
    assert addresses(again) == addresses(before), "what a pod has stays its own"
    given = [addresses(do(held, allocate(held, (4,), ask(number), later, COOLDOWN, closed))) for number in range(3, 7)]
    assert [address for (address,) in given] == [f"10.244.9.{number}" for number in range(4)]
    assert not held.has_free(4, 1, later, COOLDOWN, closed)
    assert held.has_free(4, 1, later)
    assert isinstance(allocate(held, (4,), ask(9), later, COOLDOWN, closed), NeedsBlock)


def test_a_block_of_a_lost_journal_rests_and_what_lives_in_it_does_not() -> None:
    held = ledger()
    alive = granted(do(held, adopt(held, ask(1), [ip_address("10.244.0.2")], 50.0))).leases
    do(held, hold_block(held, BLOCK4, 60.0))
    assert (held.count(4, 60.0).used, held.count(4, 60.0).resting) == (1, 3)
    assert allocate(held, (4,), ask(2), 70.0) == NeedsBlock(family=4, reason="resting", retry_after=COOLDOWN - 10.0)
    assert granted(allocate(held, (4,), ask(1), 70.0)).leases == alive
    for on in (held, replayed(snapshot(held, 70.0))):
        assert isinstance(allocate(on, (4,), ask(2), 59.9 + COOLDOWN), NeedsBlock)
        assert addresses(allocate(on, (4,), ask(2), 60.0 + COOLDOWN)) == ["10.244.0.0"]
        assert hold_block(on, BLOCK4, 100.0) == (), "a block that is held does not begin to rest"


def test_beside_a_resting_block_a_granted_one_is_used_at_once() -> None:
    held = ledger()
    do(held, hold_block(held, BLOCK4, 60.0))
    do(held, hold_block(held, Block(ip_network("10.244.0.4/30"), "v4", "n1", "u1", 7, "granted")))
    assert addresses(allocate(held, (4,), ask(1), 60.0)) == ["10.244.0.4"]


def test_a_journal_learns_once_what_was_before_it() -> None:
    held = ledger()
    assert not held.learnt
    do(held, learn(held))
    assert learn(held) == ()
    assert replayed(snapshot(held, 10.0)).learnt


def test_another_identity_raises_the_sequence() -> None:
    held = ledger(BLOCK4, BLOCK6)
    before = granted(do(held, allocate(held, (4, 6), ask(1), 10.0))).leases
    after = do(held, change(held, ask(1).attachment, 999)).leases
    assert {lease.identity for lease in after} == {999}
    assert min(lease.sequence for lease in after) > max(lease.sequence for lease in before)
    assert held.held_by(ask(1).attachment) == after
    assert change(held, ask(1).attachment, 999).records == ()


def test_another_pod_in_the_same_container_is_refused() -> None:
    held = ledger(BLOCK4)
    do(held, allocate(held, (4,), ask(1), 10.0))
    assert isinstance(allocate(held, (4,), ask(1, uid="other"), 11.0), Clash)


def test_collection_needs_two_lists_a_grace_apart_and_younger_than_the_attachment() -> None:
    held = ledger(BLOCK4)
    do(held, allocate(held, (4,), ask(1), 10.0))
    do(held, allocate(held, (4,), ask(2), 50.0))
    mine = ask(1).attachment
    first = collect(held, set(), {}, listed_at=40.0, now=60.0, grace=30.0)
    assert (first.release, set(first.suspects)) == ((), {mine}), "c2 is younger than the list"
    early = collect(held, set(), first.suspects, listed_at=60.0, now=80.0, grace=30.0)
    assert early.release == ()
    seen = collect(held, {mine}, early.suspects, listed_at=85.0, now=91.0, grace=30.0)
    assert mine not in seen.suspects, "a list that has it clears it"
    ripe = collect(held, set(), early.suspects, listed_at=85.0, now=91.0, grace=30.0)
    assert ripe.release == (mine,)


def test_a_link_without_a_lease_is_collected_by_the_same_rule() -> None:
    held = ledger(BLOCK4)
    do(held, allocate(held, (4,), ask(1), 10.0))
    mine, other = ask(1).attachment, Attachment("unrecorded", "eth0")
    links = {mine, other}
    first = collect(held, {mine}, {}, listed_at=40.0, now=60.0, grace=30.0, unrecorded=links)
    assert (first.release, set(first.suspects)) == ((), {other})
    listed = collect(held, links, first.suspects, listed_at=91.0, now=91.0, grace=30.0, unrecorded=links)
    assert (listed.release, listed.suspects) == ((), {})
    gone = collect(held, {mine}, first.suspects, listed_at=91.0, now=91.0, grace=30.0)
    assert (gone.release, gone.suspects) == ((), {}), "it was undone meanwhile"
    ripe = collect(held, {mine}, first.suspects, listed_at=91.0, now=91.0, grace=30.0, unrecorded=links)
    assert ripe.release == (other,)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_any_history_keeps_the_promises(seed: int) -> None:
    """An oracle of its own follows a random life with crashes, restarts and reboots, in true time."""
    chance = random.Random(seed)
    held = ledger(BLOCK4, BLOCK6)
    boots, true_now, boot_began = 1, 100.0, 0.0
    holder: dict[str, int] = {}
    freed: dict[str, float] = {}
    sequences = 0
    for _ in range(chance.randrange(20, 120)):
        now = true_now - boot_began
        number = chance.randrange(10)
        families = chance.choice(FAMILIES)
        match chance.choice(["allocate"] * 4 + ["release"] * 3 + ["wait", "restart", "reboot", "lost", "count"]):
            case "allocate":
                got = do(held, allocate(held, families, ask(number), now))
                before = sequences
                if isinstance(got, Grant):
                    for lease in got.leases:
                        text = str(lease.address)
                        assert holder.get(text, number) == number, "two holders"
                        if text not in holder:
                            assert true_now - freed.get(text, -1e9) >= COOLDOWN, "given before it had rested"
                            assert lease.sequence > before, "a sequence went back"
                        holder[text] = number
                        sequences = max(sequences, lease.sequence)
                else:
                    assert isinstance(got, NeedsBlock)
                    free = [text for text in map(str, (*BLOCK4.cidr, *list(BLOCK6.cidr)[1:])) if text not in holder]
                    usable = [text for text in free if ip_address(text).version == got.family and text not in freed]
                    assert not usable, f"{usable} were never used"
            case "release":
                do(held, release(held, ask(number).attachment, now))
                for text in [text for text, who in holder.items() if who == number]:
                    del holder[text]
                    freed[text] = true_now
            case "wait":
                true_now += chance.uniform(1, 200)
            case "lost":
                allocate(held, families, ask(number), now)  # decided, and the crash came before it was written
            case "count":
                sequence, records = next_sequence(held)
                do(held, records)
                held.sequence = sequence
                assert sequence > sequences
                sequences = sequence
            case how:
                held = replayed(snapshot(held, now))
                if how == "reboot":
                    boots += 1
                    true_now += chance.uniform(0, 50)
                    boot_began = true_now - 1.0
                    held.apply(Booted(f"boot-{boots}", 1.0))
        true_now += chance.uniform(0, 5)
        assert {str(address): int(lease.container[1:]) for address, lease in held.by_address.items()} == holder
        for family in (4, 6):
            count = held.count(family, true_now - boot_began)
            assert count.used == sum(1 for text in holder if ip_address(text).version == family)
            assert count.free >= 0
            for wanted in (1, count.free, count.free + 1):
                assert held.has_free(family, wanted, true_now - boot_began) == (count.free >= wanted)


def replayed(records: list[Record]) -> Ledger:
    made = Ledger()
    for record in records:
        made.apply(record)
    made.resume()
    return made


def frames() -> list[bytes]:
    held = ledger(BLOCK4, BLOCK6)
    commits = [snapshot(held, 0.0)]
    for number in range(3):
        commits.append(list(granted(allocate(held, (4, 6), ask(number), 10.0 + number)).records))
        do(held, tuple(commits[-1]))
    commits.append(list(release(held, ask(1).attachment, 20.0).records))
    return [write_frame(number, commit) for number, commit in enumerate(commits)]


def test_every_cut_leaves_the_whole_commits_before_it() -> None:
    parts = frames()
    content = b"".join(parts)
    ends = [sum(map(len, parts[:count])) for count in range(len(parts) + 1)]
    for cut in range(len(content)):
        records, whole, number = read_frames(content[:cut])
        assert whole == max(end for end in ends if end <= cut)
        assert number == ends.index(whole)
        replayed(records)


def test_every_damaged_byte_is_noticed() -> None:
    parts = frames()
    content = b"".join(parts)
    last = len(content) - len(parts[-1])
    for offset in range(len(content)):
        broken = bytearray(content)
        broken[offset] ^= 0x5A
        if offset < last:
            with pytest.raises(Damaged):
                read_frames(bytes(broken))
        else:
            assert read_frames(bytes(broken))[1] == last, "a torn last commit is cut off"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_damage_or_a_torn_tail(noise: bytes) -> None:
    parts = frames()
    records, whole, number = read_frames(b"".join(parts) + noise)
    assert (whole, number) == (sum(map(len, parts)), len(parts))
    assert len(records) > 5
