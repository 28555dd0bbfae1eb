"""Compiled policy in the maps: what a trie lookup then says, and that no step in between allows too much."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.policy import CidrPartition, CidrSet, CompiledPolicy, CompiledRule, Revision, Verdict
from services.dataplane.core.layout import POLICY_FIXED_BITS, PolicyKey, PolicyLine, Subject, SubjectKey
from services.dataplane.core.policy_maps import PolicyEntries, change, cidrs_of, entries_of, lines_of
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


def test_prefixes_outside_every_policy_have_no_entry() -> None:
    partition = CidrPartition(
        revision=Revision(epoch="e", sequence=1),
        prefixes=(CidrSet(ip_network("10.0.0.0/8"), 7), CidrSet(ip_network("fd00::/8"), 0)),
    )
    entries = cidrs_of(partition)
    assert [(str(key.network), value.number) for key, value in entries.items()] == [("10.0.0.0/8", 7)]
