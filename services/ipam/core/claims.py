"""Owners and claims of sticky addresses: which address an owner keeps, and when the claim may move.

An owner (a StatefulSet's ordinal, a bare pod that asked for it…) has an *intended* address in ``owners``; ``claims``
has one record for each such address with its present holder. The owner's record is written first and is what counts: a
claim that it does not agree with is a leftover. All is decided from records and from the Pods of ``objects``; the
shell makes it true by compare-and-set on one key, and judges again when it lost.

A claim moves when its holder's pod no longer exists (or has ended: phase Succeeded or Failed). A pod that is being
deleted may still run, so it goes on holding. The asking pod must itself be seen in ``objects``: one writer fills that
bucket in order, so whoever sees the new pod has seen the old one go, and "no such pod" can be believed.

Epochs begin at the time in whole seconds, as blocks' do, and rise by at least one at each change of holder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec

from kit.prefixes import router_anycast
from proto.addresses import Block, Claim, OwnerRecord
from proto.annotations import FIXED_ADDRESSES
from proto.net import Address, Network
from proto.objects import Owner, Pod
from proto.requests import ClaimRelease, ClaimRequest

RECOVERED = "recovered"
"""Nonce of a record that was made from ``objects`` or from the other bucket."""

INTENDS = "intends-"
"""Begins the nonce of an owner's record whose claim is not yet made."""

PodByUid = Callable[[str], Pod | None]


@dataclass(frozen=True, slots=True)
class Stands:
    """The asking interface holds the claim already; nothing to write."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Hold:
    """Write this claim (over the record that was judged, or as the first one)."""

    claim: Claim
    moved_from: str | None = None
    """Node of the holder before, when there was one."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The intended address belongs to another owner by now: the owner needs another one."""

    by: Owner


@dataclass(frozen=True, slots=True)
class Held:
    """A pod that still exists holds it; ``why`` is one sentence. Later it may be free."""

    why: str


def judge_claim(
    request: ClaimRequest, intended: Address, claim: Claim | None, pod: PodByUid, now: int
) -> Stands | Hold | Elsewhere | Held:
    """What becomes of the claim on an owner's intended address when this pod interface asks for it."""
    if claim is None:
        return Hold(_held(request, intended, now))
    if claim.owner != request.owner:
        return Elsewhere(claim.owner)
    asker = (request.node, request.pod_uid, request.container, request.interface)
    if asker == (claim.node, claim.pod_uid, claim.container, claim.interface):
        return Stands(claim)
    epoch = max(claim.epoch + 1, now)
    if not claim.node:
        return Hold(_held(request, intended, epoch))
    if claim.pod_uid == request.pod_uid and claim.node == request.node:
        # The same pod with a new sandbox: the kubelet has stopped the old one, whose DEL may come later.
        return Hold(_held(request, intended, epoch))
    if is_running(holder := pod(claim.pod_uid)):
        assert holder is not None
        return Held(
            f"{intended} of {owner_text(claim.owner)} is held by pod {holder.namespace}/{holder.name} on "
            f"{claim.node}, which still exists"
        )
    return Hold(_held(request, intended, epoch), moved_from=claim.node)


def judge_release(request: ClaimRelease, node: str, claim: Claim | None) -> Claim | None:
    """The claim without a holder, or None when the releaser does not hold it (then nothing is to be done).

    ``node`` is the one whose key sent the request: nonces are there for all to read, so knowing one proves nothing.
    """
    if claim is None or (claim.node, claim.container, claim.interface, claim.nonce) != (
        node,
        request.container,
        request.interface,
        request.nonce,
    ):
        return None
    return let_go(claim)


def names_anothers(request: ClaimRelease, node: str, claim: Claim) -> bool:
    """Whether a release names, to the nonce, what a pod of another node holds: no agent of ours does."""
    named = request.container, request.interface, request.nonce
    return claim.node not in ("", node) and (claim.container, claim.interface, claim.nonce) == named


def let_go(claim: Claim) -> Claim:
    """The claim kept for its owner, held by nobody. The epoch stays: it orders holders."""
    return msgspec.structs.replace(claim, node="", pod_uid="", container="", interface="")


def is_running(pod: Pod | None) -> bool:
    """Whether a pod may still use its address."""
    return pod is not None and pod.phase not in ("Succeeded", "Failed")


def free_address(
    blocks: Iterable[Block], claims: Mapping[Address, Claim], intended: Set[Address], passed: Set[Address]
) -> tuple[Address, Block] | None:
    """The smallest address of these blocks (of ``ipam``'s own) that nobody claims, intends or was just faster with.

    Not an IPv6 block's first one, which routers have.
    """
    for block in blocks:
        never = router_anycast(block.cidr)
        for address in block.cidr:
            if address not in claims and address not in intended and address not in passed and address != never:
                return address, block
    return None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a pass over owners and claims found."""

    forget: tuple[OwnerRecord, ...] = ()
    """Owners without a pod for longer than the grace: they keep nothing any more."""
    let_go: tuple[tuple[Claim, Claim], ...] = ()
    """Claims whose holder's pod is gone without a release, as they are and as they should be."""
    free: tuple[Claim, ...] = ()
    """Claims that no owner agrees with and that have rested: their addresses may be given again."""
    restore: tuple[tuple[Owner, Address], ...] = ()
    """Owners without a record whose pod runs with their claim: they were forgotten just when they came back."""
    since: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    """For the next pass: when each of these was first found so."""


def sweep(
    owners: Mapping[tuple[Owner, int], OwnerRecord],
    claims: Mapping[Address, Claim],
    pods: Iterable[Pod],
    since: Mapping[tuple[str, ...], float],
    *,
    now: float,
    grace: float,
    cooldown: float,
) -> Sweep:
    """A pass of garbage collection; ``now`` is monotonic seconds of the observer.

    Everything must have been seen so without interruption: an owner without pods for ``grace`` seconds, a claim whose
    holder is gone, or that no owner agrees with, for ``cooldown``. A restart of the observer begins anew.
    """
    running = [pod for pod in pods if is_running(pod)]
    uids = {pod.uid for pod in running}
    owned = {kept_owner(pod) for pod in running} | {bare_owner(pod) for pod in running}
    ripe: dict[tuple[str, ...], float] = {}

    def lasts(key: tuple[str, ...], seconds: float) -> bool:
        ripe[key] = min(since.get(key, now), now)
        return key in since and now - ripe[key] >= seconds

    forget = [
        record
        for (owner, family), record in owners.items()
        if owner not in owned and not _in_use(claims.get(record.address), owner, uids)
        if lasts(("owner", owner_text(owner), str(family)), grace)
    ]
    gone: list[tuple[Claim, Claim]] = []
    free: list[Claim] = []
    restore: list[tuple[Owner, Address]] = []
    for address, claim in claims.items():
        agreed = owners.get((claim.owner, address.version))
        if claim.pod_uid in uids:
            if agreed is None:
                restore.append((claim.owner, address))
            continue
        if agreed is not None and agreed.address == address:
            if claim.node and lasts(("holder", str(address), claim.pod_uid), cooldown):
                gone.append((claim, let_go(claim)))
        elif lasts(("free", str(address), str(claim.epoch)), cooldown):
            free.append(claim)
    return Sweep(tuple(forget), tuple(gone), tuple(free), tuple(restore), ripe)


def kept_owner(pod: Pod) -> Owner | None:
    """The owner that a pod's kept addresses belong to, if it has one."""
    return pod.owner


def asks_for(pod: Pod, address: Address) -> bool:
    """Whether the pod's annotation (``cni.projectcalico.org/ipAddrs``, a JSON list) asks for this very address."""
    try:
        listed = msgspec.json.decode(dict(pod.annotations).get(FIXED_ADDRESSES, "[]")[:1024], type=list[str])
        return address in [ip_address(text) for text in listed]
    except (msgspec.DecodeError, ValueError):
        return False


def bare_owner(pod: Pod) -> Owner:
    """A pod that belongs to no workload owns itself."""
    return Owner(pod.namespace, "Pod", pod.name)


def owner_text(owner: Owner) -> str:
    """``namespace/kind/name/ordinal``, as events tell it."""
    return f"{owner.namespace}/{owner.kind}/{owner.name}/{owner.ordinal}"


def rebuilt(
    owners: Mapping[tuple[Owner, int], OwnerRecord],
    claims: Mapping[Address, Claim],
    pods: Iterable[Pod],
    blocks: Mapping[Network, Block],
    now: int,
) -> tuple[tuple[OwnerRecord, ...], tuple[Claim, ...]]:
    """Records that one bucket lacks and the other, or a running pod's address, tells of.

    ``blocks`` are those of ``ipam``: an address of theirs that a pod with an owner has is a kept one.
    """
    new_owners: dict[tuple[Owner, int], OwnerRecord] = {}
    new_claims: dict[Address, Claim] = {}
    for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name)):
        owner = pod.owner or bare_owner(pod)
        for address in pod.addresses if is_running(pod) else ():
            block = next((b for c, b in blocks.items() if c.version == address.version and address in c), None)
            if block is None:
                continue
            if address not in claims:
                new_claims[address] = Claim(address, owner, pod.node, pod.uid, "", "", now, RECOVERED)
            if (owner, address.version) not in owners:
                new_owners[owner, address.version] = OwnerRecord(owner, address, block.pool, RECOVERED)
    for address, claim in {**new_claims, **claims}.items():
        key = (claim.owner, address.version)
        if claim.owner.namespace and key not in owners and key not in new_owners:
            block = next((b for c, b in blocks.items() if c.version == address.version and address in c), None)
            new_owners[key] = OwnerRecord(claim.owner, address, block.pool if block else "", RECOVERED)
    for (owner, _), record in owners.items():
        unclaimed = record.address not in claims and record.address not in new_claims
        if unclaimed and not record.nonce.startswith(INTENDS):
            new_claims[record.address] = Claim(record.address, owner, "", "", "", "", now, RECOVERED)
    return tuple(new_owners.values()), tuple(new_claims.values())


def _held(request: ClaimRequest, address: Address, epoch: int) -> Claim:
    return Claim(
        address=address,
        owner=request.owner,
        node=request.node,
        pod_uid=request.pod_uid,
        container=request.container,
        interface=request.interface,
        epoch=epoch,
        nonce=request.nonce,
    )


def _in_use(claim: Claim | None, owner: Owner, uids: Set[str]) -> bool:
    return claim is not None and claim.owner == owner and claim.pod_uid in uids
