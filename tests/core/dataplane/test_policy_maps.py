"""Compiled policy in the maps: what a trie lookup then says, and that no step in between allows too much."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.policy import CidrPartition, CidrSet, CompiledPolicy, CompiledRule, Revision, Verdict
from services.dataplane.core.layout import POLICY_FIXED_BITS, PolicyKey, PolicyLine, Subject, SubjectKey
from services.dataplane.core.policy_maps import (
    CidrEntries,
    PolicyEntries,
    change,
    cidr_change,
    cidrs_of,
    entries_of,
    fitting,
    lines_of,
    namespace_hash,
)
from tests.core.dataplane.notation import TCP, UDP, policy, rule

Lines = dict[PolicyKey, PolicyLine]


def lookup(lines: Lines, subject: int, peer: tuple[int, int], protocol: int, port: int) -> PolicyLine | None:
    """Longest prefix match for one (subject, ingress, peer), as BPF_MAP_TYPE_LPM_TRIE does it."""
    best: PolicyKey | None = None
    for key in lines:
        if (key.subject, key.direction, key.peer_kind, key.peer) != (subject, 0, *peer):
            continue
        bits = key.prefixlen - POLICY_FIXED_BITS
        if bits >= 8 and key.protocol != protocol:
            continue
        if bits > 8 and (port ^ key.port) >> (16 - (bits - 8)):
            continue
        if best is None or key.prefixlen > best.prefixlen:
            best = key
    return lines[best] if best is not None else None


@pytest.mark.parametrize(
    ("protocol", "port", "found"),
    [(TCP, 80, 0), (TCP, 81, None), (UDP, 80, 2), (TCP, 8080, 1), (TCP, 8087, 1), (TCP, 8088, None), (UDP, 9, 2)],
)
def test_ports_ranges_and_protocols(protocol: int, port: int, found: int | None) -> None:
    lines = lines_of(policy(900, "in any tcp/80", "in any tcp/8080/13", "in any udp"))
    line = lookup(lines, 900, (0, 0), protocol, port)
    assert (line.rule if line else None) == found


_rules = st.lists(
    st.builds(
        lambda port, bits, protocol, rank, verdict: rule(
            f"in any {'any' if not protocol else f'tcp/{port}/{bits}'}", rank=rank, verdict=verdict, number=rank
        ),
        st.integers(0, 65535),
        st.integers(0, 16),
        st.booleans(),
        st.integers(0, 6),
        st.sampled_from(["allow", "deny"]),
    ),
    max_size=8,
)


def _matches(one: CompiledRule, port: int) -> bool:
    return not one.protocol or (one.port ^ port) >> (16 - one.port_bits) == 0


@given(_rules, st.integers(0, 65535))
def test_the_lowest_rank_wins_although_the_trie_finds_the_longest(rules: list[CompiledRule], port: int) -> None:
    compiled = msgspec.structs.replace(policy(900), rules=tuple(rules))
    for probe in {port, *(one.port for one in rules)}:
        line = lookup(lines_of(compiled), 900, (0, 0), TCP, probe)
        matching = [one for one in rules if _matches(one, probe)]
        assert (line is None) == (not matching)
        if line is not None:
            assert line.rank == min(one.rank for one in matching)


def test_an_identity_without_rules_has_no_entry_and_is_denied() -> None:
    entries = entries_of([900, 901], {900: policy(900, "in any any")})
    assert set(entries.subjects) == {SubjectKey(identity=900)}


def _allows(entries: PolicyEntries, port: int) -> bool:
    subject = entries.subjects.get(SubjectKey(identity=900))
    if subject is None:
        return False
    line = lookup(entries.lines, 900, (0, 0), TCP, port)
    return line.verdict == Verdict.ALLOW if line else not subject.ingress_isolated


_policies = st.one_of(
    st.none(),
    st.builds(
        lambda lines, isolated: policy(900, *lines, isolated=isolated),
        st.lists(st.sampled_from(["in any tcp/80", "in any tcp/443", "in any any", "in any tcp/80/13"]), unique=True),
        st.sampled_from(["in", ""]),
    ),
)


@given(_policies, _policies)
def test_no_step_of_a_change_allows_more_than_both_its_ends(
    before: CompiledPolicy | None, after: CompiledPolicy | None
) -> None:
    old = entries_of([900], {900: before} if before else {})
    new = entries_of([900], {900: after} if after else {})
    steps = change(old, new)
    live = PolicyEntries(dict(old.subjects), dict(old.lines))

    def check() -> None:
        for port in (80, 85, 443, 9999):
            if _allows(live, port):
                assert _allows(old, port) or _allows(new, port)

    for key, line in steps.add_lines.items():
        live.lines[key] = line
        check()
    for subject in steps.remove_subjects:
        del live.subjects[subject]
        check()
    live.subjects.update(steps.set_subjects)
    check()
    for key in steps.remove_lines:
        del live.lines[key]
        check()
    assert (live.subjects, live.lines) == (new.subjects, new.lines)


def test_a_change_of_nothing_is_nothing() -> None:
    entries = entries_of([900], {900: policy(900, "in any tcp/80")})
    assert not change(entries, entries)


def test_what_was_deleted_by_hand_comes_back_and_strangers_go() -> None:
    wanted = entries_of([900], {900: policy(900, "in any tcp/80", "in 500 any")})
    actual = PolicyEntries(
        {**wanted.subjects, SubjectKey(identity=666): Subject(ingress_isolated=False, egress_isolated=False)},
        dict(list(wanted.lines.items())[1:]),
    )
    steps = change(actual, wanted)
    assert set(steps.add_lines) == {next(iter(wanted.lines))}
    assert steps.remove_subjects == (SubjectKey(identity=666),)


def sets(space: str, *entries: str) -> CidrPartition:
    """``10.0.0.0/8=7``: a prefix and the number of its set."""
    cut = tuple(CidrSet(ip_network(prefix), int(number)) for prefix, number in (text.split("=") for text in entries))
    return CidrPartition(Revision(epoch="e", sequence=1), cut, space, "digest")


def test_each_namespace_has_its_own_cidr_sets_and_holes_are_told() -> None:
    entries = cidrs_of(sets("x", "10.0.0.0/8=7", "10.1.0.0/16=0")) | cidrs_of(sets("y", "10.0.0.0/8=9"))
    assert {(key.namespace, key.prefixlen, str(key.address)): value.number for key, value in entries.items()} == {
        (namespace_hash("x"), 64 + 96 + 8, "10.0.0.0"): 7,
        (namespace_hash("x"), 64 + 96 + 16, "10.1.0.0"): 0,
        (namespace_hash("y"), 64 + 96 + 8, "10.0.0.0"): 9,
    }
    assert namespace_hash("x") != namespace_hash("y")
    assert namespace_hash("") == bytes(8)


NESTED = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "11.0.0.0/8")
CUTS = st.dictionaries(st.sampled_from(NESTED), st.integers(0, 2))
LOOKED_UP = tuple(
    IPv4Address(text) for text in ("10.1.1.1", "10.1.1.2", "10.1.2.1", "10.2.0.1", "11.0.0.1", "12.0.0.1")
)


@given(CUTS, CUTS)
def test_an_address_is_at_every_moment_in_its_old_set_or_in_its_new_one(
    before: dict[str, int], after: dict[str, int]
) -> None:
    old, new = (cidrs_of(sets("x", *(f"{p}={n}" for p, n in cut.items()))) for cut in (before, after))
    live = dict(old)
    steps = cidr_change(old, new)
    for key in (*steps.upserts, *steps.deletes):
        if key in steps.upserts:
            live[key] = steps.upserts[key]
        else:
            del live[key]
        for host in LOOKED_UP:
            assert _set_at(live, host) in (_set_at(old, host), _set_at(new, host))
    assert live == new


def _set_at(entries: CidrEntries, host: IPv4Address) -> int:
    """What the trie says: the longest prefix that holds the address."""
    holding = [key for key in entries if host in IPv4Network((str(key.address), key.prefixlen - 64 - 96))]
    return entries[max(holding, key=lambda key: key.prefixlen)].number if holding else 0


def test_the_largest_namespace_goes_without_when_the_map_is_too_small() -> None:
    partitions = {
        "small": sets("small", "10.0.0.0/8=1"),
        "large": sets("large", "10.0.0.0/8=1", "11.0.0.0/8=2", "12.0.0.0/8=2"),
        "middle": sets("middle", "10.0.0.0/8=1", "11.0.0.0/8=1"),
    }
    assert fitting(partitions, 6) == {"small", "middle", "large"}
    assert fitting(partitions, 5) == {"small", "middle"}
    assert fitting({}, 0) == frozenset()
