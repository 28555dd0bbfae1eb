"""When the blocks of a Node that is gone are taken back: what is seen at which second, and what is done then."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest

from proto.addresses import IPAM_HOLDER, Block
from proto.net import Network
from services.ipam.core.evidence import NO_EVIDENCE
from services.ipam.core.orphaned import (
    MARK,
    Signs,
    Watched,
    absent_holders,
    freed,
    is_marked,
    reclaim,
)
from services.ipam.core.recovery import GiveUp, Keep, Reporter, Write, judge_report

GRACE, COOLDOWN = 100.0, 30.0
CIDR = ip_network("10.0.0.0/26")
HELD = Block(CIDR, "p", "n1", "uid-n1", 7, "asked")
MARKED = Block(CIDR, "p", "n1", "uid-n1", 7, MARK + "asked")


class Observer:
    """One copy of ipam that looks now and then, and whose writes all succeed."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.watched = Watched()

    def look(self, now: float, *, there: bool = False, signs: Signs | None = None) -> str:
        """What it does at this second."""
        found = reclaim(
            [self.block],
            {"n1", "n2"} if there else {"n2"},
            {} if there else {"n1": signs if signs is not None else Signs((5,))},
            self.watched,
            now=now,
            grace=GRACE,
            cooldown=COOLDOWN,
        )
        self.watched = found.watched
        said = ""
        for name, changes in (("mark", found.mark), ("unmark", found.unmark), ("free", found.free)):
            for before, after in changes:
                assert before == self.block
                self.block = after
                said += name
        return said


@pytest.mark.parametrize(
    ("looks", "done"),
    [
        ("0 100", "- mark"),
        ("0 99", "- -"),
        ("500", "-"),
        ("0 50:there 100 199 200", "- - - - mark"),
        ("0 50:wrote 100:wrote 149:wrote 150:wrote", "- - - - mark"),
        ("0 50:occupied 149 150:occupied 249 250", "- - - - - mark"),
        ("0 100 101 130 131", "- mark - - free"),
        ("0 100 500", "- mark -"),
        ("0 100 101 130:there 131", "- mark - unmark -"),
        ("0 100 101 130:occupied 131", "- mark - unmark -"),
        ("0 100 101 130:wrote 200:wrote 230:wrote", "- mark - unmark - mark"),
        ("0 100 101 130:unreadable 131", "- mark - unmark -"),
    ],
    ids=[
        "absent-for-the-grace", "not-yet", "never-at-first-sight", "came-back", "wrote", "occupied",
        "rested", "a-mark-is-seen-before-it-counts", "came-back-marked", "occupied-marked", "wrote-marked",
        "cannot-tell",
    ],
)  # fmt: skip
def test_two_phases_and_every_way_out(looks: str, done: str) -> None:
    observer = Observer(HELD)
    said = []
    for look in looks.split():
        second, _, what = look.partition(":")
        match what:
            case "wrote":
                signs: Signs | None = Signs((5, 9))
            case "occupied":
                signs = Signs((5,), occupied=True)
            case "unreadable":
                signs = Signs(occupied=True)
            case _:
                signs = None
        said.append(observer.look(float(second), there=what == "there", signs=signs) or "-")
    assert " ".join(said) == done
    if done.endswith("free"):
        assert observer.block == Block(CIDR, "p", "", "", 8, MARK + "asked")
    if done.endswith("unmark -"):
        assert observer.block == HELD


def test_a_new_observer_lets_what_is_marked_rest_again() -> None:
    observer = Observer(MARKED)
    assert [observer.look(second) for second in (1000.0, 1029.0, 1030.0)] == ["", "", "free"]


def test_blocks_of_ipam_and_of_nobody_are_not_looked_at() -> None:
    blocks = [Block(CIDR, "p", holder, "", 7, "x") for holder in (IPAM_HOLDER, "", "n2")]
    assert absent_holders(blocks, {"n2"}) == ()
    found = reclaim(blocks, {"n2"}, {}, Watched(), now=1e9, grace=0.0, cooldown=0.0)
    assert (found.mark, found.unmark, found.free) == ((), (), ())


def test_a_holder_whose_signs_were_not_read_is_alive() -> None:
    watched = Watched()
    for second in range(0, 1000, 10):
        found = reclaim([HELD], set(), {}, watched, now=float(second), grace=GRACE, cooldown=COOLDOWN)
        assert (found.mark, found.free) == ((), ())
        watched = found.watched


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_freed_that_was_not_gone_and_silent_for_grace_and_rest(seed: int) -> None:
    """An oracle of its own keeps when the node last was there, wrote, or had a pod."""
    chance = random.Random(seed)
    observer, now, last_sign, revision, frees = Observer(HELD), 0.0, 0.0, 5, 0
    for _ in range(400):
        now += chance.uniform(1, 12)
        there = chance.random() < 0.02
        occupied = not there and chance.random() < 0.02
        if not there and chance.random() < 0.02:
            revision += 1
            last_sign = now
        if there or occupied:
            last_sign = now
        did = observer.look(now, there=there, signs=Signs((revision,), occupied))
        if did == "mark":
            assert now - last_sign >= GRACE
        if did == "free":
            assert now - last_sign >= GRACE + COOLDOWN
            frees += 1
            observer = Observer(HELD)
            last_sign = now
    assert frees, "and it is freed"


@pytest.mark.parametrize(
    ("reported", "known", "outcome"),
    [
        (HELD, MARKED, HELD),
        (Block(CIDR, "p", "n1", "u", 3, "older"), MARKED, HELD),
        (HELD, freed(MARKED), Block(CIDR, "p", "n1", "uid-n1", 9, "asked")),
        (HELD, Block(CIDR, "p", "n2", "uid-n2", 9, "theirs"), None),
    ],
    ids=["marked", "marked-and-newer", "free-and-not-yet-given", "given-to-another"],
)
def test_a_node_that_speaks_again(reported: Block, known: Block, outcome: Block | None) -> None:
    blocks: dict[Network, Block] = {CIDR: known}
    reporter = Reporter(node="n1", uid="uid-n1", pool="p")
    match judge_report(reported, reporter, blocks, NO_EVIDENCE, complete=True, now=1):
        case Write(block, over):
            assert (block, over) == (outcome, known)
            assert not is_marked(block)
        case GiveUp():
            assert outcome is None
        case Keep():
            raise AssertionError("a mark must not stay")
