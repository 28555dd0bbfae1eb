"""Compiled policy as entries of the kernel's maps, and the order in which a change is made.

Owns ``am_subjects``, ``am_policy`` and ``am_cidrs``. Promises: only identities that live on this node are in the
maps; a change never passes through a state that allows more than both its ends: lines first, then isolation, then
what is stale; a subject that leaves goes before its lines (an absent subject is denied everything). Among nested
lines (any protocol ⊃ a protocol ⊃ a port range) the trie finds the longest, the language says the lowest rank: so
each line is written with the verdict of the lowest rank among those that contain it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeAlias

import msgspec

from proto.policy import CidrPartition, CompiledPolicy, CompiledRule
from services.dataplane.core.layout import CidrKey, CidrNumber, PolicyKey, PolicyLine, Subject, SubjectKey

CidrEntries: TypeAlias = dict[CidrKey, CidrNumber]


@dataclass(frozen=True, slots=True)
class PolicyEntries:
    """What the two policy maps should hold."""

    subjects: dict[SubjectKey, Subject] = field(default_factory=dict)
    lines: dict[PolicyKey, PolicyLine] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """Steps in the order of the fields."""

    add_lines: dict[PolicyKey, PolicyLine]
    remove_subjects: tuple[SubjectKey, ...]
    set_subjects: dict[SubjectKey, Subject]
    remove_lines: tuple[PolicyKey, ...]

    def __bool__(self) -> bool:
        """True when anything changes."""
        return bool(self.add_lines or self.remove_subjects or self.set_subjects or self.remove_lines)


def entries_of(identities: Iterable[int], rules: Mapping[int, CompiledPolicy]) -> PolicyEntries:
    """Entries for the identities that live here; one without rules gets none, and is denied."""
    wanted = PolicyEntries()
    for identity in identities:
        policy = rules.get(identity)
        if policy is None:
            continue
        wanted.subjects[SubjectKey(identity=identity)] = Subject(
            ingress_isolated=policy.ingress_isolated,
            egress_isolated=policy.egress_isolated,
            revision=policy.revision.sequence & 0xFFFFFFFF,
            namespace=namespace_hash(policy.namespace),
        )
        wanted.lines.update(lines_of(policy))
    return wanted


def lines_of(policy: CompiledPolicy) -> dict[PolicyKey, PolicyLine]:
    """The lines of one identity by key; of equal keys the lowest rank stays."""
    best: dict[CompiledRule, CompiledRule] = {}
    for rule in policy.rules:
        place = _place(rule)
        other = best.get(place)
        if other is None or (rule.rank, rule.rule) < (other.rank, other.rule):
            best[place] = rule
    if len({rule.rank for rule in best.values()}) > 1:
        best = {place: _strongest(place, best) for place in best}
    return {_key(policy.identity, place): _line(rule) for place, rule in best.items()}


def _place(rule: CompiledRule) -> CompiledRule:
    """The rule without what it says: where it stands in the trie."""
    bits = rule.port_bits if rule.protocol else 0
    port = rule.port >> (16 - bits) << (16 - bits) if bits else 0
    return msgspec.structs.replace(rule, port=port, port_bits=bits, rank=0, rule=0, verdict=0)


def _strongest(place: CompiledRule, rules: Mapping[CompiledRule, CompiledRule]) -> CompiledRule:
    containing = [_widened(place, bits) for bits in range(place.port_bits + 1)] if place.protocol else []
    containing.append(msgspec.structs.replace(place, protocol=0, port=0, port_bits=0))
    found = [rules[wider] for wider in containing if wider in rules]
    return min(found, key=lambda rule: (rule.rank, rule.rule))


def _widened(place: CompiledRule, bits: int) -> CompiledRule:
    return msgspec.structs.replace(place, port=place.port >> (16 - bits) << (16 - bits), port_bits=bits)


def _key(identity: int, place: CompiledRule) -> PolicyKey:
    return PolicyKey.line(
        identity,
        int(place.direction),
        peer_kind=int(place.peer_kind),
        peer=place.peer,
        protocol=place.protocol,
        port=place.port,
        bits=place.port_bits,
    )


def _line(rule: CompiledRule) -> PolicyLine:
    return PolicyLine(rank=rule.rank, verdict=int(rule.verdict), rule=rule.rule)


def change(actual: PolicyEntries, wanted: PolicyEntries, identities: Set[int] | None = None) -> PolicyChange:
    """Steps from what the maps hold to what they should hold.

    With ``identities`` both sides are taken to be about these subjects alone.
    """

    def mine(subject: int) -> bool:
        return identities is None or subject in identities

    return PolicyChange(
        add_lines={key: line for key, line in wanted.lines.items() if actual.lines.get(key) != line},
        remove_subjects=tuple(key for key in actual.subjects if mine(key.identity) and key not in wanted.subjects),
        set_subjects={key: value for key, value in wanted.subjects.items() if actual.subjects.get(key) != value},
        remove_lines=tuple(key for key in actual.lines if mine(key.subject) and key not in wanted.lines),
    )


def namespace_hash(namespace: str) -> bytes:
    """Whose entries of ``am_cidrs`` are whose; all zero for no namespace."""
    return blake2b(namespace.encode(), digest_size=8).digest() if namespace else bytes(8)


def cidrs_of(partition: CidrPartition) -> CidrEntries:
    """Entries of ``am_cidrs`` for a partition; one with number 0 is a hole in the prefix around it."""
    namespace = namespace_hash(partition.namespace)
    return {CidrKey.of(namespace, entry.prefix): CidrNumber(number=entry.number) for entry in partition.prefixes}


def fitting(partitions: Mapping[str, CidrPartition], room: int) -> frozenset[str]:
    """Namespaces whose partitions the map takes: the smallest first, so that the largest is the first to go without."""
    taken: set[str] = set()
    for namespace in sorted(partitions, key=lambda name: (len(partitions[name].prefixes), name)):
        room -= len(partitions[namespace].prefixes)
        if room < 0:
            break
        taken.add(namespace)
    return frozenset(taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class CidrChange:
    """Steps in the order of the fields, each in the order that it has.

    Prefixes lie in one another, so the order matters: longer ones are set before the shorter ones around them, and
    removed after these. Then each address is at every moment in its old set or in its new one, and in no third.
    """

    upserts: CidrEntries
    deletes: tuple[CidrKey, ...]


def cidr_change(actual: Mapping[CidrKey, CidrNumber], wanted: Mapping[CidrKey, CidrNumber]) -> CidrChange:
    """Steps from what ``am_cidrs`` holds to what it should hold."""
    new = sorted((key for key, value in wanted.items() if actual.get(key) != value), key=_length, reverse=True)
    return CidrChange(
        upserts={key: wanted[key] for key in new},
        deletes=tuple(sorted((key for key in actual if key not in wanted), key=_length)),
    )


def _length(key: CidrKey) -> int:
    return key.prefixlen
