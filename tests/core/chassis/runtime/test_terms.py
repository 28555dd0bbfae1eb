"""Whose turn a lease is, one look after the other, and every interleaving of copies on one register."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from chassis.runtime.terms import MAX_EPOCH, Found, Mine, Renew, Step, Wait, judge, next_epoch
from proto.codec import Malformed, UnknownVersion
from proto.leases import Lease

CLOCK = 1_700_000_000.0
MS = int(CLOCK * 1000)
ME = Mine(holder="me", seconds=6.0)
NONSENSE, NEWER = Malformed("Lease: nonsense"), UnknownVersion("Lease of version 2")


def record(holder: str, epoch: int, *, seconds: float = 6.0, renewals: int = 4) -> Lease:
    return Lease(holder=holder, epoch=epoch, renewals=renewals, seconds=seconds)


def knowing(term: int = 0, known: int = 0, *, held: bool = False) -> Mine:
    """Has looked at revision 7 since 100 s of its own clock."""
    return replace(ME, term=term, known=max(known, term), held=held, revision=7, since=100.0)


def look(mine: Mine, there: Lease | Malformed | UnknownVersion | None, *, now: float, revision: int = 7) -> Step:
    found = None if there is None else Found(revision=revision, record=there)
    return judge(mine, found, now=now, clock=CLOCK)[1]


@pytest.mark.parametrize(
    ("mine", "there", "rested", "step"),
    [
        # nothing there
        (ME, None, 0, Renew(MS)),
        (knowing(5, held=True), None, 0, Renew(MS)),
        (knowing(known=MS + 9, term=MS + 9), None, 0, Renew(MS + 10)),
        (replace(knowing(known=5), revision=0), None, 5.9, Wait("its record is gone")),
        (replace(knowing(known=5), revision=0), None, 6.0, Renew(MS)),
        # another's record
        (knowing(), record("other", 5), 5.9, Wait("another copy holds it")),
        (knowing(), record("other", 5), 6.0, Renew(MS, 5)),
        (knowing(), record("other", 5, seconds=2.0), 2.0, Renew(MS, 5)),
        (knowing(), record("", 5), 0, Renew(MS, 5)),
        (knowing(), record("other", MS + 3), 6.0, Renew(MS + 4, 5)),
        (knowing(5, held=True), record("other", 6), 0, Wait("another copy holds it")),
        # ours
        (knowing(5, held=True), record("me", 5), 0, Renew(5, 5)),
        (knowing(5), record("me", 5), 0, Renew(5, 5)),
        (knowing(), record("me", 5), 0, Renew(MS, 5)),  # of an earlier life of this copy: a term of its own
        (knowing(5, held=True), record("me", 4), 0, Renew(MS, 5)),  # the store went back
        (knowing(5, known=9), record("me", 5), 0, Wait("another copy holds it")),  # ... to before another held it
        (knowing(5, held=True), record("me", 6), 0, Wait("another copy holds it")),  # a second copy of our name
        # what nobody can read
        (knowing(), NONSENSE, 5.9, Wait("its record cannot be read")),
        (knowing(known=MS + 3), NONSENSE, 6.0, Renew(MS + 4)),
        (knowing(5, held=True), NONSENSE, 0, Renew(MS)),
        (knowing(5), NONSENSE, 5.9, Wait("its record cannot be read")),
        (knowing(), record("other", MAX_EPOCH), 6.0, Renew(MS)),
        (knowing(), record("other", -1), 6.0, Renew(MS)),
        (knowing(), record("other", 5, seconds=float("inf")), 6.0, Renew(MS)),
        (knowing(), record("other", 5, seconds=float("nan")), 6.0, Renew(MS)),
        (knowing(), record("other", 5, renewals=1 << 63), 6.0, Renew(MS)),
        # what a newer release can
        (knowing(), NEWER, 1e9, Wait("a newer release holds it")),
        (knowing(5, held=True), NEWER, 0, Wait("a newer release holds it")),
    ],
)
def test_a_look(mine: Mine, there: Lease | Malformed | UnknownVersion | None, rested: float, step: Step) -> None:
    assert look(mine, there, now=100.0 + rested) == step


@pytest.mark.parametrize("there", [record("other", 5), NONSENSE])
def test_whatever_changes_does_not_rest(there: Lease | Malformed) -> None:
    mine = knowing()
    for second in range(60):
        mine, step = judge(mine, Found(revision=8 + second, record=there), now=100.0 + second, clock=CLOCK)
        assert isinstance(step, Wait)


@pytest.mark.parametrize(
    ("known", "clock", "epoch"),
    [
        (0, CLOCK, MS),
        (MS, CLOCK, MS + 1),
        (MS + 70, CLOCK, MS + 71),
        (7, 0.0, 8),
        (7, -5.0, 8),
        (0, 1e300, MAX_EPOCH // 2),
    ],
)
def test_the_next_epoch(known: int, clock: float, epoch: int) -> None:
    assert next_epoch(known, clock) == epoch


class World:
    """One register with compare-and-set, hurt at will, and copies that look at it at odd times."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self.revision = 0
        self.there: Lease | Malformed | None = None
        self.copies = [replace(ME, holder=f"copy-{number}") for number in range(3)]
        self.good_until = [0.0] * 3
        self.epochs: list[tuple[int, str]] = []

    def holding(self) -> list[int]:
        return [one for one in range(3) if self.copies[one].held and self.now < self.good_until[one]]

    def advance(self, one: int) -> None:
        mine = replace(self.copies[one], held=one in self.holding())
        found = None if self.there is None else Found(revision=self.revision, record=self.there)
        mine, step = judge(mine, found, now=self.now, clock=CLOCK + self.now)
        if isinstance(step, Renew):
            self.revision += 1
            self.there = record(mine.holder, step.epoch, renewals=step.renewals)
            if not self.epochs or self.epochs[-1] != (step.epoch, mine.holder):
                self.epochs.append((step.epoch, mine.holder))
            mine = replace(mine, held=True, term=step.epoch, known=max(mine.known, step.epoch))
            self.good_until[one] = self.now + 4.0
        else:
            mine = replace(mine, held=False)
        self.copies[one] = mine

    def hurt(self) -> None:
        match self.dice.randrange(4):
            case 0:
                self.revision, self.there = self.revision + 1, NONSENSE
            case 1:
                self.revision, self.there = self.revision + 1, None
            case 2:  # a lost store: revisions begin again
                self.revision, self.there = self.dice.randrange(3), None
            case _:  # a copy dies and begins again under its name
                one = self.dice.randrange(3)
                self.copies[one] = Mine(holder=f"copy-{one}-{self.now}", seconds=6.0)
                self.good_until[one] = 0.0


@pytest.mark.parametrize("seed", range(60))
def test_epochs_only_grow_and_somebody_always_gets_it(seed: int) -> None:
    world = World(seed)
    held_at = 0.0
    for _ in range(400):
        world.now += world.dice.uniform(0.2, 1.5)
        world.advance(world.dice.randrange(3))
        if world.dice.random() < 0.03:
            world.hurt()
        if world.holding():
            held_at = world.now
        assert world.now - held_at < 30, "nobody holds it any more"
    epochs = [epoch for epoch, _ in world.epochs]
    assert epochs == sorted(set(epochs)), "an epoch came twice, or went back"


@pytest.mark.parametrize("seed", range(60))
def test_never_two_while_what_breaks_is_the_record(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.now += world.dice.uniform(0.2, 1.5)
        if world.dice.random() < 0.1:
            world.revision, world.there = world.revision + 1, NONSENSE
        world.advance(world.dice.randrange(3))
        assert len(world.holding()) <= 1
    assert len({holder for _, holder in world.epochs}) > 1, "it never changed hands: nothing was tried"
