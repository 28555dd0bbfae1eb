"""What an upgrade does with each map: every mixture of layouts, and every place where it can be interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.core.datapath import maps as m
from services.dataplane.core.datapath.layout import MapKind
from services.dataplane.core.datapath.maps import MAPS, MapSpec
from services.dataplane.core.datapath.pins import (
    LAYOUTS_BEFORE,
    RULES,
    Pinned,
    Plan,
    Rule,
    Source,
    layout_of,
    layout_text,
    parse_pin_name,
    pin_name,
    plan,
)

ALL = frozenset(spec.name for spec in MAPS)
POLICY = frozenset(spec.name for spec, rule in RULES.items() if rule.source is Source.POLICY)
LAYOUTS = Path(__file__).parents[3] / "golden" / "map_layouts.txt"


def pinned(changed: frozenset[str] = frozenset(), absent: frozenset[str] = frozenset()) -> dict[str, Pinned]:
    """All maps as a version has them of which some have another layout here, and some are not there."""
    return {
        spec.name: Pinned("other" if spec.name in changed else layout_of(spec), spec.entries, number)
        for number, spec in enumerate(MAPS, 1)
        if spec.name not in absent
    }


def upgrade(now: dict[str, Pinned], begun: dict[str, Pinned] | None = None, *, running: bool = True) -> Plan:
    return plan(now, begun or {}, {}, running=running)


def test_every_map_has_a_rule() -> None:
    assert set(RULES) == set(MAPS)
    assert all(other in RULES for rule in RULES.values() for other in rule.refers)


def test_a_restart_changes_nothing() -> None:
    outcome = upgrade(pinned())
    assert outcome.taken == ALL
    assert not outcome.is_upgrade
    assert outcome.unfilled == frozenset()
    assert outcome.losses == {}


def test_a_new_node_waits_for_nothing() -> None:
    outcome = upgrade({}, running=False)
    assert outcome.made == {spec.name: spec.entries for spec in MAPS}
    assert outcome.unfilled == frozenset()
    assert outcome.losses == {}


@pytest.mark.parametrize(
    ("changed", "emptied", "unfilled", "lost"),
    [
        ("am_ct", {"am_ct", "am_ct_recent", "am_ct_peers", "am_generation"}, set(), {"am_ct"}),
        ("am_ct_peers", {"am_ct_peers"}, set(), set()),
        ("am_ct_budget", {"am_ct_budget"}, {Source.NODE}, set()),
        ("am_generation", {"am_ct", "am_ct_recent", "am_ct_peers", "am_generation"}, set(), {"am_ct"}),
        ("am_ipcache", {"am_ipcache"}, {Source.ADDRESSES}, set()),
        ("am_subjects", set(POLICY), {Source.POLICY}, set()),
        ("am_backends", {"am_backends"}, {Source.SERVICES}, set()),
        (
            "am_services",
            {"am_services", "am_affinity", "am_clients", "am_nat", "am_nat_recent"},
            {Source.SERVICES},
            {"am_affinity", "am_clients", "am_nat"},
        ),
        ("am_nat", {"am_nat", "am_nat_recent"}, set(), {"am_nat"}),
        ("am_slots", {"am_slots", "am_sent"}, set(), {"am_sent"}),
        ("am_scratch", {"am_scratch"}, set(), set()),
        ("am_metrics", {"am_metrics"}, set(), {"am_metrics"}),
    ],
)
def test_one_changed_map(changed: str, emptied: set[str], unfilled: set[Source], lost: set[str]) -> None:
    outcome = upgrade(pinned(frozenset({changed})))
    assert outcome.made.keys() == emptied
    assert outcome.taken == ALL - emptied
    assert outcome.unfilled == unfilled
    assert outcome.losses.keys() == lost


def test_a_map_that_is_added_costs_no_flow() -> None:
    added = MapSpec("am_added", MapKind.HASH, m.FLOWS.key, m.FLOWS.value, 16, "for a feature to come")
    for source in (None, Source.NODE, Source.SERVICES, Source.POLICY):
        outcome = plan(pinned(), {}, {}, running=True, rules={**RULES, added: Rule(source)})
        assert {"am_ct", "am_nat", "am_affinity", "am_sent"} <= outcome.taken
        assert outcome.losses == {}
        assert outcome.unfilled == ({source} if source else set())


def test_a_map_that_is_no_more_goes_and_may_have_been_of_policy() -> None:
    outcome = upgrade({**pinned(), "am_former": Pinned("x", 1, 99)})
    assert outcome.retired == {"am_former"}
    assert outcome.made.keys() == POLICY
    assert outcome.losses == {}


def test_what_has_grown_stays_as_large() -> None:
    now = pinned(frozenset({"am_ct", "am_ct_recent"}))
    now["am_ct"] = replace(now["am_ct"], entries=1 << 20)
    now["am_ct_recent"] = replace(now["am_ct_recent"], entries=5)
    outcome = plan(now, {}, {"am_ct": 1 << 18}, running=True)
    assert outcome.made["am_ct"] == 1 << 20
    assert outcome.made["am_ct_recent"] == m.RECENT.entries  # its size is a part of its layout


def test_of_another_version_that_was_given_up_nothing_is_taken() -> None:
    made = pinned(frozenset({"am_links"}))
    begun = {name: replace(made[name], id=100 + made[name].id) for name in ("am_ct", "am_links")}
    assert upgrade(pinned(frozenset({"am_ct"})), begun).begun == frozenset()


def test_layouts_of_the_versions_before_are_those_of_all_their_maps() -> None:
    for layouts in LAYOUTS_BEFORE.values():
        assert len(set(layouts.values())) == len(layouts)
        assert all(len(layout) == 12 for layout in layouts.values())


def test_pins_name_their_layout() -> None:
    for spec in MAPS:
        assert parse_pin_name(pin_name(spec)) == (spec.name, layout_of(spec))
    assert parse_pin_name("am_ct") == ("am_ct", "")


def test_a_layout_is_type_flags_records_and_meaning() -> None:
    spec = m.IPCACHE
    others = (
        replace(spec, flags=0),
        replace(spec, kind=MapKind.HASH),
        replace(spec, key=m.CIDRS.key),
        replace(spec, value=m.FLOWS.value),
        replace(spec, revision=1),
    )
    assert len({layout_of(one) for one in (spec, *others)}) == 6
    assert layout_of(replace(spec, entries=7, purpose="")) == layout_of(spec)
    assert layout_of(replace(m.RECENT, entries=7)) != layout_of(m.RECENT)


def test_a_change_of_a_record_is_seen() -> None:
    """Whoever changes a record says whether its entries mean what they meant."""
    assert LAYOUTS.read_text() == written_layouts(), (
        "a map's records have changed: raise its revision if entries that lie as before mean something else now, "
        "look at its rule in core/datapath/pins.py, then run: python -m tests.core.dataplane.datapath.test_pins"
    )


def written_layouts() -> str:
    """All layouts, with fields by name."""
    lines = []
    for spec in MAPS:
        lines.append(f"{layout_of(spec)} {layout_text(spec)}")
        for record in (spec.key, spec.value):
            fields = record.wire().members if record else ()
            lines.append("    " + " ".join(f"{one.name}:{one.c_type}@{one.offset}+{one.size}" for one in fields))
    return "\n".join(lines) + "\n"


names = st.sampled_from(sorted(ALL))
some = st.frozensets(names, max_size=6)


@given(changed=some, absent=some, former=st.booleans(), made=st.floats(0, 1), running=st.booleans())
def test_any_mixture_and_any_interruption(
    changed: frozenset[str], absent: frozenset[str], former: bool, made: float, running: bool
) -> None:
    now = pinned(changed, absent) | ({"am_former": Pinned("x", 1, 99)} if former else {})
    outcome = upgrade(now, running=running)
    assert sorted((*outcome.taken, *outcome.made)) == sorted(ALL)
    same = ALL - changed - absent
    for spec, rule in RULES.items():
        broken = {other.name for other in rule.refers} - outcome.taken
        if rule.source is Source.POLICY and (former or not same >= POLICY):
            broken |= {"its group"}
        assert (spec.name in outcome.taken) == (spec.name in same and not broken)
        if rule.source is not None and spec.name not in outcome.taken:
            assert (rule.source in outcome.unfilled) == running
    assert outcome.losses.keys() == {
        spec.name for spec, rule in RULES.items() if rule.loss and spec.name in outcome.made and spec.name in now
        if running
    }  # fmt: skip
    # Interrupted after some have been made, and some of those that are taken pinned beside: it goes on.
    done = sorted(outcome.made)[: round(len(outcome.made) * made)]
    specs = {spec.name: spec for spec in MAPS}
    begun = {name: Pinned(layout_of(specs[name]), 1, 1000 + number) for number, name in enumerate(done)}
    again = upgrade(now, begun | {name: now[name] for name in outcome.taken}, running=running)
    assert again == replace(
        outcome, begun=frozenset(done), made={name: size for name, size in outcome.made.items() if name not in begun}
    )
    # When it is done, there is nothing left to do.
    after = {spec.name: Pinned(layout_of(spec), 1, number) for number, spec in enumerate(MAPS)}
    assert not upgrade(after, running=running).is_upgrade


if __name__ == "__main__":
    LAYOUTS.write_text(written_layouts())
