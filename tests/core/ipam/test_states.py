"""What ipam takes back, through lists of states: claims nobody holds, owners without pods, blocks of Nodes that went.

Each pass is judged from all that was seen so far, kept whole: a thing is taken back when every look for long enough has
shown it so. Whoever then looks long enough at one state must find what that state alone says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from random import Random
from typing import TypeVar

import msgspec

from proto.addresses import CONTESTED, IPAM_HOLDER, Block, Claim, OwnerRecord
from proto.net import Network
from proto.objects import Owner, Pod
from services.ipam.core.claims import sweep
from services.ipam.core.orphaned import MARK, Signs, Watched, reclaim
from tests.core.states import Driver, every_order, follow

GRACE, COOLDOWN = 100.0, 30.0
STEPS = (5.0, 20.0, 45.0)
"""Seconds from one look to the next, in turn."""
LONG = 60.0

Key = tuple[str, str]
V = TypeVar("V")


def of(objects: Mapping[Key, object], kind: type[V]) -> list[V]:
    return [one for one in objects.values() if isinstance(one, kind)]


class Sweeping(Driver[Key, Claim | OwnerRecord | Pod]):
    """A copy of ipam that sweeps now and then; nothing that it finds is done."""

    def __init__(self) -> None:
        self.objects: dict[Key, Claim | OwnerRecord | Pod] = {}
        self.looks: list[tuple[float, dict[Key, Claim | OwnerRecord | Pod]]] = []
        self.since: Mapping[tuple[str, ...], float] = {}
        self.now, self.verdict = 0.0, set[object]()

    def put(self, key: Key, value: Claim | OwnerRecord | Pod | None) -> None:
        self.objects.pop(key, None)
        if value is not None:
            self.objects[key] = value

    def flush(self, step: float | None = None) -> None:
        self.now += step or STEPS[len(self.looks) % len(STEPS)]
        self.looks.append((self.now, dict(self.objects)))
        found = sweep(
            {(one.owner, one.address.version): one for one in of(self.objects, OwnerRecord)},
            {one.address: one for one in of(self.objects, Claim)},
            of(self.objects, Pod),
            self.since,
            now=self.now,
            grace=GRACE,
            cooldown=COOLDOWN,
        )
        self.since = found.since
        self.verdict = {
            *(("forget", one) for one in found.forget),
            *(("let go", one) for one in found.let_go),
            *(("free", one) for one in found.free),
            *(("restore", one) for one in found.restore),
        }

    def settle(self) -> object:
        for _ in range(3):
            self.flush(LONG)
            self.check({})
        return self.verdict

    def check(self, present: Mapping[Key, object]) -> None:
        """What has been so in every look, back to one that is long enough ago, and nothing else."""
        expected = set()
        for reason, one in findings(self.objects):
            seconds = {"forget": GRACE, "let go": COOLDOWN, "free": COOLDOWN, "restore": 0.0}[reason]
            if all(about(reason, one) in seen for seen in self.back(seconds)):
                expected.add((reason, one))
        assert self.verdict == expected

    def back(self, seconds: float) -> list[set[object]]:
        """What was to be taken back in each look since the last one that is so long ago; an empty one if none is."""
        found: list[set[object]] = []
        for at, objects in reversed(self.looks):
            found.append({about(reason, one) for reason, one in findings(objects)})
            if self.now - at >= seconds:
                return found
        return [set()]


def about(reason: str, one: object) -> object:
    """What makes two findings the same: an owner's family, a holder, an epoch."""
    if isinstance(one, OwnerRecord):
        return reason, one.owner, one.address.version
    if isinstance(one, Claim):
        return reason, one.address, one.epoch
    if isinstance(one, tuple) and isinstance(one[0], Claim):
        return reason, one[0].address, one[0].pod_uid
    return reason, one


def findings(objects: Mapping[Key, object]) -> set[tuple[str, object]]:
    """By the present records and pods: the owner's record counts, and a pod that has not ended uses what is its."""
    running = [pod for pod in of(objects, Pod) if pod.phase in ("Pending", "Running", "Unknown")]
    uids = {pod.uid for pod in running}
    owning = {pod.owner for pod in running} | {Owner(pod.namespace, "Pod", pod.name) for pod in running}
    records, claims = of(objects, OwnerRecord), of(objects, Claim)
    held = {(claim.owner, claim.address) for claim in claims if claim.pod_uid in uids}
    found: set[tuple[str, object]] = set()
    for record in records:
        if record.owner not in owning and (record.owner, record.address) not in held:
            found.add(("forget", record))
    for claim in claims:
        agreed = [one for one in records if (one.owner, one.address) == (claim.owner, claim.address)]
        any_record = [
            one for one in records if (one.owner, one.address.version) == (claim.owner, claim.address.version)
        ]
        if claim.pod_uid in uids:
            if not any_record:
                found.add(("restore", (claim.owner, claim.address)))
        elif not agreed:
            found.add(("free", claim))
        elif claim.node:
            nobody = Claim(claim.address, claim.owner, "", "", "", "", claim.epoch, claim.nonce)
            found.add(("let go", (claim, nobody)))
    return found


OWNERS = (Owner("shop", "StatefulSet", "db", 0), Owner("shop", "StatefulSet", "db", 1), Owner("shop", "Pod", "bare"))
TEXTS = ("10.9.0.1", "10.9.0.2", "fd00:9::1")


def records_and_pods(chance: Random) -> dict[Key, Claim | OwnerRecord | Pod]:
    objects: dict[Key, Claim | OwnerRecord | Pod] = {}
    for owner in OWNERS:
        for family in (4, 6):
            if chance.random() < 0.6:
                address = ip_address(chance.choice([text for text in TEXTS if (":" in text) == (family == 6)]))
                objects["owner", f"{owner.name} {owner.ordinal} {family}"] = OwnerRecord(owner, address, "p", "n")
    for text in TEXTS:
        if chance.random() < 0.8:
            uid = chance.choice(("u1", "u2", "u3", ""))
            node = "n1" if uid else ""
            owner, epoch = chance.choice(OWNERS), chance.choice((7, 8))
            objects["claim", text] = Claim(ip_address(text), owner, node, uid, uid and "c", uid and "eth0", epoch, "n")
    for number in (1, 2, 3):
        if chance.random() < 0.5:
            owned = chance.choice((*OWNERS[:2], None))
            phase = chance.choice(("Running", "Running", "Pending", "Succeeded", "Failed"))
            name = chance.choice(("bare", f"p{number}"))
            objects["pod", f"u{number}"] = Pod("shop", name, f"u{number}", "n1", phase=phase, owner=owned)
    return objects


@every_order(seeds=6)
def test_claims_and_owners_are_reclaimed_when_nobody_has_used_them_long_enough(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Sweeping, findings, [records_and_pods(chance) for _ in range(4)], expander, seed)


@dataclass(frozen=True)
class Look:
    """What was there when a pass looked, before it did anything."""

    at: float
    records: Mapping[Network, Block]
    objects: Mapping[Key, Block | int]

    def written(self, node: str) -> object:
        return self.objects.get(("written", node))

    def is_absent(self, node: str) -> bool:
        return ("node", node) not in self.objects and any(one.node == node for one in self.records.values())


class Reclaiming(Driver[Key, Block | int]):
    """A copy of ipam that looks for orphaned blocks; marks are written, what is to be freed is only found."""

    def __init__(self) -> None:
        self.objects: dict[Key, Block | int] = {}
        self.records: dict[Network, Block] = {}
        self.looks: list[Look] = []
        self.watched = Watched()
        self.now, self.verdict = 0.0, set[tuple[str, Network]]()

    def put(self, key: Key, value: Block | int | None) -> None:
        self.objects.pop(key, None)
        if value is not None:
            self.objects[key] = value
        if key[0] == "block":
            self.records.pop(ip_network(key[1]), None)
            if isinstance(value, Block):
                self.records[value.cidr] = value

    def flush(self, step: float | None = None) -> None:
        self.now += step or STEPS[len(self.looks) % len(STEPS)]
        self.looks.append(Look(self.now, dict(self.records), dict(self.objects)))
        signs = {}
        for node in NODES:
            if isinstance(revision := self.objects.get(("written", node)), int):
                signs[node] = Signs((revision,), occupied=("pod", node) in self.objects)
        found = reclaim(
            self.records.values(),
            {node for node in NODES if ("node", node) in self.objects},
            signs,
            self.watched,
            now=self.now,
            grace=GRACE,
            cooldown=COOLDOWN,
        )
        self.watched = found.watched
        done = {"mark": found.mark, "unmark": found.unmark, "free": found.free}
        self.verdict = {(what, before.cidr) for what, changes in done.items() for before, _ in changes}
        for before, after in (*found.mark, *found.unmark):
            assert self.records[before.cidr] == before
            self.records[before.cidr] = after
        for before, after in found.free:
            assert after == msgspec.structs.replace(before, node="", node_uid="", epoch=before.epoch + 1)

    def settle(self) -> object:
        for _ in range(6):
            self.flush(LONG)
            self.check({})
        return self.verdict

    def check(self, present: Mapping[Key, object]) -> None:
        """A mark follows a grace without a sign, a block is free when it was seen marked so for the cooldown."""
        expected = set()
        for cidr, record in self.looks[-1].records.items():
            marked, node = record.nonce.startswith(MARK), record.node
            if node not in NODES:
                continue
            if not self.at_rest(len(self.looks) - 1, node):
                expected |= {("unmark", cidr)} if marked else set()
            elif marked:
                expected |= {("free", cidr)} if self.rested(record) >= COOLDOWN else set()
            else:
                expected |= {("mark", cidr)} if self.silent(node) >= GRACE else set()
        assert self.verdict == expected

    def spoke(self, at: int, node: str) -> bool:
        """Whether a look saw a sign of life of an absent node, or could not tell."""
        look, before = self.looks[at], self.looks[at - 1] if at else None
        moved = before is not None and before.is_absent(node) and before.written(node) != look.written(node)
        return ("pod", node) in look.objects or look.written(node) is None or moved

    def silent(self, node: str) -> float:
        """Seconds since the look from which on the node has been absent, and has given no sign after it."""
        at = len(self.looks) - 1
        while at > 0 and self.looks[at - 1].is_absent(node) and not self.spoke(at, node):
            at -= 1
        return self.now - self.looks[at].at

    def rested(self, record: Block) -> float:
        """Seconds since the look from which on the record has been this one, its node absent and without a sign."""
        at = len(self.looks) - 1
        while at > 0 and self.looks[at - 1].records.get(record.cidr) == record and self.at_rest(at - 1, record.node):
            at -= 1
        return self.now - self.looks[at].at

    def at_rest(self, at: int, node: str) -> bool:
        return self.looks[at].is_absent(node) and not self.spoke(at, node)


NODES = ("n1", "n2")
CIDRS = ("10.0.0.0/26", "10.0.0.64/26", "fd00::/122")


def orphaned(objects: Mapping[Key, Block | int]) -> object:
    """Blocks of Nodes that are not there, of which nothing says that they live."""
    return {
        ("free", block.cidr)
        for block in of(objects, Block)
        if block.node in NODES
        and not {("node", block.node), ("pod", block.node)} & objects.keys()
        and ("written", block.node) in objects
    }


def blocks_and_nodes(chance: Random) -> dict[Key, Block | int]:
    objects: dict[Key, Block | int] = {}
    for text in CIDRS:
        if chance.random() < 0.8:
            holder = chance.choice((*NODES * 3, "", IPAM_HOLDER, CONTESTED))
            nonce = chance.choice(("asked", MARK + "asked"))
            objects["block", text] = Block(ip_network(text), "p", holder, f"uid-{holder}", chance.choice((7, 8)), nonce)
    for node in NODES:
        if chance.random() < 0.3:
            objects["node", node] = 1
        if chance.random() < 0.2:
            objects["pod", node] = 1
        if chance.random() < 0.9:
            objects["written", node] = chance.choice((5, 9))
    return objects


@every_order(seeds=6)
def test_blocks_are_reclaimed_from_nodes_that_are_gone_and_silent_long_enough(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Reclaiming, orphaned, [blocks_and_nodes(chance) for _ in range(4)], expander, seed)
