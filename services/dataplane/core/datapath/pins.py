"""The plan of an upgrade: which pinned maps the new programs take over, which begin anew, what must be filled first.

A pin's name carries the layout of its map (:func:`layout_of`), so a version knows which of the pinned maps are its own,
one by one. A map whose layout is unchanged is taken over with all that is in it. Of the others, :data:`RULES` says:

* what the agent writes from a :class:`Source` is filled anew, and until then the old programs run on with the old maps;
* what the programs remember begins empty, and what is lost by it is said (:attr:`Rule.loss`);
* a map that holds numbers or places of another (:attr:`Rule.refers`) begins anew with it;
* the maps of policy are taken over all together or not at all: the old programs must never judge by half of them while
  the agent writes the other half. A map that is no more may have been one of them.

No order of events matters: a plan is made of what is pinned now, so an upgrade that was interrupted goes on where it
was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from services.dataplane.core.datapath import maps as m
from services.dataplane.core.datapath.maps import MapSpec
from services.dataplane.core.datapath.wire import Record


class Source(Enum):
    """What the agent writes a map from, and so can write it from again."""

    NODE = "the endpoints of this node"
    ADDRESSES = "the addresses of the cluster"
    POLICY = "policy"
    SERVICES = "Services"
    TUNNELS = "the tunnels"


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a map that cannot be taken over."""

    source: Source | None = None
    """What it is filled from before the programs switch; None: it begins empty."""
    refers: tuple[MapSpec, ...] = ()
    """Maps whose numbers or places it holds: where one of them begins anew, so does this."""
    loss: str = ""
    """What is noticed when it begins anew; empty: nothing."""


_AFFINITY_LOST = "clients of Services with affinity may get another backend"
_PEERNAME_LOST = "sockets that were connected to a Service no longer see its address as their peer's"
RULES: Mapping[MapSpec, Rule] = {
    m.LINKS: Rule(Source.NODE),
    m.UPLINKS: Rule(Source.NODE),
    m.ENDPOINTS: Rule(Source.NODE),
    m.COOKIES: Rule(Source.NODE),
    m.BUDGETS: Rule(Source.NODE),
    m.IPCACHE: Rule(Source.ADDRESSES),
    m.CIDRS: Rule(Source.POLICY),
    m.SUBJECTS: Rule(Source.POLICY),
    m.SELECTED: Rule(Source.POLICY),
    m.SCOPE_PEERS: Rule(Source.POLICY),
    m.SCOPE_PORTS: Rule(Source.POLICY),
    m.SCOPE_RULES: Rule(Source.POLICY),
    m.SERVICES: Rule(Source.SERVICES),
    m.BACKENDS: Rule(Source.SERVICES),
    m.MEMBERS: Rule(Source.SERVICES),
    m.SOURCE_RANGES: Rule(Source.SERVICES),
    m.CHOICE: Rule(Source.SERVICES),
    m.NODE_ADDRESSES: Rule(Source.SERVICES),
    m.TUNNELS: Rule(Source.TUNNELS),
    m.TUNNEL_ENDS: Rule(Source.TUNNELS),
    m.TUNNEL_PEERS: Rule(Source.TUNNELS),
    m.TUNNEL_SOURCES: Rule(Source.TUNNELS),
    m.FLOWS: Rule(
        refers=(m.RECENT, m.GENERATION),
        loss="flows of pods are taken up in the middle: those that policy would not let begin now end",
    ),
    m.GENERATION: Rule(refers=(m.FLOWS,)),
    m.RECENT: Rule(refers=(m.FLOWS,)),
    m.PEERS: Rule(refers=(m.FLOWS,)),
    m.FRAGMENTS: Rule(loss="fragmented packets that were under way are dropped"),
    m.NATS: Rule(refers=(m.NAT_RECENT, m.SERVICES), loss="connections that came from outside by a Service end"),
    m.NAT_RECENT: Rule(refers=(m.NATS,)),
    m.OUTWARD: Rule(),
    m.AFFINITIES: Rule(refers=(m.SERVICES,), loss=_AFFINITY_LOST),
    m.CLIENTS: Rule(refers=(m.SERVICES,), loss=_AFFINITY_LOST),
    m.SLOTTED: Rule(refers=(m.SENT,)),
    m.SENT: Rule(refers=(m.SLOTTED,), loss=_PEERNAME_LOST),
    m.REVERSES: Rule(loss=_PEERNAME_LOST),
    m.METRICS: Rule(loss="packet counters begin at 0"),
    m.EVENTS: Rule(),
    m.CONFIG: Rule(),
    m.THROTTLES: Rule(),
    m.SCRATCH: Rule(),
    m.NEXT_HOPS: Rule(),
    m.REFUSED: Rule(),
    m.DNS_PODS: Rule(loss="what was measured of pods' DNS begins at 0"),
    m.DNS_BLANK: Rule(),
}
"""What becomes of each map that cannot be taken over."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A map as it is pinned."""

    layout: str
    """As :func:`layout_of` its version; empty where that is not known."""
    entries: int
    id: int
    """The kernel's number of it: two pins of one number are one map."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a start does with the maps. Together, ``taken``, ``begun`` and ``made`` are all maps of this version."""

    taken: frozenset[str]
    """Maps that are taken over with all that is in them."""
    begun: frozenset[str]
    """Maps that an interrupted upgrade to this version has made already."""
    made: Mapping[str, int]
    """Entries of each map that is made now."""
    unfilled: frozenset[Source]
    """Sources that new maps must be filled from before the programs switch; none where no programs run."""
    losses: Mapping[str, str]
    """What is lost, by map."""
    retired: frozenset[str]
    """Maps that this version has no use for."""

    @property
    def is_upgrade(self) -> bool:
        """Whether what is pinned must change."""
        return bool(self.begun or self.made or self.retired)


def plan(
    now: Mapping[str, Pinned],
    begun: Mapping[str, Pinned],
    sizes: Mapping[str, int],
    *,
    running: bool,
    rules: Mapping[MapSpec, Rule] = RULES,
) -> Plan:
    """The plan, by maps' names: ``now`` is what the present programs use, ``begun`` what an interrupted upgrade (to
    this version or another) has made, ``sizes`` the entries that are asked for where not the spec's, ``running``
    whether programs hang anywhere. A map that has grown stays as large in its successor.
    """
    layouts = {spec.name: layout_of(spec) for spec in rules}
    fresh = {name: one for name, one in begun.items() if name not in now or now[name].id != one.id}
    if any(layouts.get(name) != one.layout for name, one in fresh.items()):
        fresh = {}  # another version's, which was given up
    taken = _taken({name for name, one in now.items() if layouts.get(name) == one.layout}, now, rules)
    lost = [spec for spec in rules if spec.name not in taken]
    return Plan(
        taken=frozenset(taken),
        begun=frozenset(fresh.keys() - taken),
        made={spec.name: _entries(spec, sizes, now) for spec in lost if spec.name not in fresh},
        unfilled=frozenset(s for spec in lost if (s := rules[spec].source) is not None) if running else frozenset(),
        losses={spec.name: rules[spec].loss for spec in lost if rules[spec].loss and spec.name in now and running},
        retired=frozenset(now.keys() - layouts.keys()),
    )


def _taken(same: Iterable[str], now: Collection[str], rules: Mapping[MapSpec, Rule]) -> set[str]:
    """Of the maps whose layout is unchanged, those that mean what they meant."""
    taken, known = set(same), {spec.name for spec in rules}
    policy = {spec.name for spec, rule in rules.items() if rule.source is Source.POLICY}
    if not policy <= taken or not known.issuperset(now):
        taken -= policy
    while dangling := {
        spec.name
        for spec, rule in rules.items()
        if spec.name in taken and any(other.name not in taken for other in rule.refers)
    }:
        taken -= dangling
    return taken


def _entries(spec: MapSpec, sizes: Mapping[str, int], now: Mapping[str, Pinned]) -> int:
    asked = sizes.get(spec.name, spec.entries)
    return max(asked, now[spec.name].entries) if spec.may_grow and spec.name in now else asked


def layout_of(spec: MapSpec) -> str:
    """Names the layout of one map: its type, flags and records. Not what its fields are called, so a field may get a
    better name; one that comes to mean something else raises the map's ``revision``.
    """
    return hashlib.sha256(layout_text(spec).encode()).hexdigest()[:12]


def layout_text(spec: MapSpec) -> str:
    """What :func:`layout_of` is the hash of."""
    entries = "any" if spec.may_grow else spec.entries
    return (
        f"{spec.name} type {spec.kind:d} entries {entries} flags {spec.flags} revision {spec.revision} "
        f"key {_shape(spec.key)} value {_shape(spec.value)}"
    )


def _shape(record: type[Record] | None) -> str:
    if record is None:
        return "-"
    return ",".join(f"{member.c_type}:{member.offset}:{member.size}" for member in record.wire().members)


def pin_name(spec: MapSpec) -> str:
    """The file name of a map's pin."""
    return f"{spec.name}-{layout_of(spec)}"


def parse_pin_name(name: str) -> tuple[str, str]:
    """(map, layout) of a pin's file name; the layout is empty in names that carry none."""
    table, _, layout = name.partition("-")
    return table, layout


LAYOUTS_BEFORE: Mapping[str, Mapping[str, str]] = {
    "e48e2febe94e": {
        "am_links": "542f97412078",
        "am_uplinks": "7ff5f67c49cd",
        "am_endpoints": "b2c24a333149",
        "am_ipcache": "ab546bd05dd8",
        "am_cidrs": "3d06febd69d0",
        "am_subjects": "c1c89db8fc96",
        "am_selected": "b90a5aa5df85",
        "am_scope_peer": "fbc172296f60",
        "am_scope_port": "86e6f89e6908",
        "am_scope_rule": "d5c5c4aaa1ad",
        "am_generation": "d096753e32a8",
        "am_ct": "7b3ca84a8030",
        "am_ct_budget": "4e3d9111c5b7",
        "am_frags": "613930df55ec",
        "am_events": "50a0c4019021",
        "am_metrics": "c986be42fad8",
        "am_config": "482f5d033493",
        "am_throttle": "813ff114e4a1",
        "am_scratch": "bbd9151ebdb2",
        "am_services": "1901bf6e6cfa",
        "am_backends": "7393e3155c6c",
        "am_members": "901d40748c5d",
        "am_src_ranges": "b1feb75dd050",
        "am_affinity": "b1a1370ba2ec",
        "am_slots": "32b883c14f24",
        "am_sent": "05f1c62030c8",
        "am_reverse": "dd96c72d4e56",
        "am_cookies": "3504150434cb",
        "am_nat": "811a1aa20f0c",
        "am_clients": "e6444960193a",
        "am_own": "aa4c1fdfd83f",
        "am_outward": "d73d7958962c",
        "am_ct_recent": "020eae60ddfe",
        "am_ct_peers": "913984193518",
        "am_nat_recent": "e564d9407928",
    },
}
"""Layouts of the maps in folders ``v<hash of all layouts>``: how versions pinned that had one hash for all."""
