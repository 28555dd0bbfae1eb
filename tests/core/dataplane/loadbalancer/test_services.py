"""Which backends a connection to a Service may reach, and that a change never leaves it without one."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.objects import EndpointSlice, HostPort, Pod, Service
from services.dataplane.core.datapath.service_layout import BackendKey, MemberKey, ServiceKey
from services.dataplane.core.loadbalancer import services as tables_module
from services.dataplane.core.loadbalancer.choice import choice_key
from services.dataplane.core.loadbalancer.endpoint_choice import Target
from services.dataplane.core.loadbalancer.frontends import Frontends, HostPortPod
from services.dataplane.core.loadbalancer.node_context import NodeContext
from services.dataplane.core.loadbalancer.service_objects import ServiceObjects
from services.dataplane.core.loadbalancer.services import Tables, change, swept, takes_udp_backends, whole
from tests.core.dataplane.notation import TCP, UDP, frontends_of, objects_of, plan_in, service, slice_of, slots_of

VIP = "10.96.0.10"
KEY = ServiceKey(address=ip_address(VIP), port=80, protocol=TCP)


def tables_of(services: list[Service], slices: list[EndpointSlice], before: Tables, **context: Any) -> Tables:
    plan = frontends_of(services, slices, [], NodeContext(node="n1", **context))
    return tables_module.tables_of(plan.frontends, plan.backends, plan.stand_ins, before)


def backends(services: list[Service], slices: list[EndpointSlice], key: ServiceKey = KEY, **context: Any) -> set[str]:
    tables = tables_of(services, slices, Tables(), **context)
    return {f"{address}:{port}" for address, port in slots_of(tables).get(key, ())}


@pytest.mark.parametrize(
    ("endpoints", "fields", "expected"),
    [
        (["10.244.0.1", "10.244.1.1 @n2"], {}, {"10.244.0.1:8080", "10.244.1.1:8080"}),
        (["10.244.0.1", "10.244.0.2 notready"], {}, {"10.244.0.1:8080"}),
        (["10.244.0.1 notready"], {}, set()),
        (["10.244.0.1", "10.244.0.2 terminating"], {}, {"10.244.0.1:8080"}),
        (["10.244.0.1 terminating", "10.244.0.2 notready"], {}, {"10.244.0.1:8080"}),
        (["10.244.0.1 dead"], {}, set()),
        (["10.244.0.1", "10.244.1.1 @n2"], {"internal_policy": "Local"}, {"10.244.0.1:8080"}),
        (["10.244.1.1 @n2"], {"internal_policy": "Local"}, set()),
        (["10.244.0.1 terminating", "10.244.1.1 @n2"], {"internal_policy": "Local"}, {"10.244.0.1:8080"}),
        (["10.244.0.1 notready"], {"publish_not_ready": True}, {"10.244.0.1:8080"}),
        (["10.244.0.1 dead"], {"publish_not_ready": True}, {"10.244.0.1:8080"}),
        (["fd00::1"], {}, set()),
        ([], {}, set()),
    ],
)
def test_the_choice_of_backends(endpoints: list[str], fields: dict[str, Any], expected: set[str]) -> None:
    assert backends([service("web", VIP, **fields)], [slice_of("web", *endpoints)]) == expected


ONE, TWO, THREE = "10.244.0.1", "10.244.0.2", "10.244.0.3"


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ([f"{ONE} zone=a", f"{TWO} zone=b"], {ONE}),
        ([f"{ONE} zone=a zone=b", f"{TWO} zone=b"], {ONE}),
        ([f"{ONE} zone=b", f"{TWO} zone=c"], {ONE, TWO}),
        ([f"{ONE} zone=a", TWO], {ONE, TWO}),
        ([f"{ONE} zone=a", f"{TWO} zone=b", f"{THREE} notready"], {ONE}),
        ([f"{ONE} zone=a notready", f"{TWO} zone=b"], {TWO}),
        ([f"{ONE} zone=b terminating", f"{TWO} zone=a terminating"], {ONE, TWO}),
        ([f"{ONE} node=n1", f"{TWO} node=n2"], {ONE}),
        ([f"{ONE} node=n2", f"{TWO} node=n3"], {ONE, TWO}),
        ([f"{ONE} zone=a node=n2", f"{TWO} zone=a node=n1", f"{THREE} zone=b node=n2"], {TWO}),
        ([f"{ONE} zone=a node=n2", f"{TWO} zone=a node=n3", f"{THREE} zone=b node=n3"], {ONE, TWO}),
        ([f"{ONE} zone=a node=n1", f"{TWO} zone=a", f"{THREE} zone=b node=n2"], {ONE, TWO}),
    ],
)
def test_hints_are_followed_only_where_all_have_them_and_one_is_for_us(
    endpoints: list[str], expected: set[str]
) -> None:
    found = backends([service("web", VIP)], [slice_of("web", *endpoints)], zone="a")
    assert found == {f"{address}:8080" for address in expected}


def test_a_node_without_a_zone_follows_no_hints_of_zones_and_local_policy_follows_none() -> None:
    slices = [slice_of("web", f"{ONE} zone=a", f"{TWO} zone=b @n2")]
    assert backends([service("web", VIP)], slices) == {f"{ONE}:8080", f"{TWO}:8080"}
    assert backends([service("web", VIP, internal_policy="Local")], slices, zone="b") == {f"{ONE}:8080"}


@pytest.mark.parametrize(
    ("endpoints", "fields", "others"),
    [
        ([f"{ONE} node=n1", f"{TWO} node=n2", f"{THREE} node=n3"], {}, {TWO, THREE}),
        ([f"{ONE} zone=a", f"{TWO} zone=b"], {}, {TWO}),
        ([f"{ONE} node=n1", f"{TWO} node=n2", f"{THREE} node=n3 notready"], {}, {TWO}),
        ([f"{ONE} node=n1", f"{TWO} node=n2 terminating"], {}, set()),
        ([f"{ONE} node=n1", f"{TWO} node=n1", f"{THREE} node=n2"], {}, set()),
        ([f"{ONE} node=n2", f"{TWO} node=n3"], {}, set()),
        ([ONE], {}, set()),
        ([f"{ONE} node=n1", f"{TWO} node=n2 @n2"], {"internal_policy": "Local"}, set()),
    ],
)
def test_for_a_single_one_that_hints_have_left_another_stands_in(
    endpoints: list[str], fields: dict[str, Any], others: set[str]
) -> None:
    """It has the next index, is no member, and is not the same for all nodes."""
    found = set()
    for node in [f"m{number}" for number in range(20)]:
        parts = [slice_of("web", *(one.replace("node=n1", f"node={node}") for one in endpoints))]
        plan = frontends_of([service("web", VIP, **fields)], parts, [], NodeContext(node=node, zone="a"))
        tables = tables_module.tables_of(plan.frontends, plan.backends, plan.stand_ins, Tables())
        ((number, count),) = {(one.number, one.backends) for one in tables.services.values()}
        behind = tables.backends.get(BackendKey(service=number, index=count))
        found |= {str(behind.address)} if behind is not None else set()
        assert len(tables.members) == count
    assert found == others


def test_both_families_have_their_own_backends() -> None:
    web = service("web", VIP, "fd00:10:96::10")
    slices = [slice_of("web", "10.244.0.1"), slice_of("web", "fd00:10:244::1", part="b")]
    six = ServiceKey(address=ip_address("fd00:10:96::10"), port=80, protocol=TCP)
    assert backends([web], slices) == {"10.244.0.1:8080"}
    assert backends([web], slices, six) == {"fd00:10:244::1:8080"}


def test_ports_are_matched_by_name_and_protocol() -> None:
    dns = service("dns", VIP, ports=("dns:53/udp", "dns-tcp:53/tcp", "sctp:9/sctp"))
    slices = [
        slice_of("dns", "10.244.0.1", port="dns:5353/udp"),
        slice_of("dns", "10.244.0.2", port="other:1/tcp", part="b"),
    ]
    tables = tables_of([dns], slices, Tables())
    assert {key.protocol for key in tables.services} == {TCP, UDP}
    udp = ServiceKey(address=ip_address(VIP), port=53, protocol=UDP)
    assert slots_of(tables)[udp] == ((ip_address("10.244.0.1"), 5353),)
    tcp = ServiceKey(address=ip_address(VIP), port=53, protocol=TCP)
    assert tables.services[tcp].backends == 0


def test_a_headless_service_has_no_entry_and_others_slices_do_not_count() -> None:
    other = slice_of("other", "10.244.0.9")
    for_names = msgspec.structs.replace(slice_of("web", "10.244.0.8"), fronted=False)
    assert tables_of([service("web")], [slice_of("web", "10.244.0.1")], Tables()).services == {}
    assert backends([service("web", VIP)], [other, for_names]) == set()


def test_numbers_stay_while_backends_come_and_go() -> None:
    web = service("web", VIP, affinity_seconds=30)
    before = tables_of([web], [slice_of("web", "10.244.0.1", "10.244.0.2", "10.244.0.3")], Tables())
    after = tables_of([web], [slice_of("web", "10.244.0.3", "10.244.0.2")], before)
    assert after.services[KEY].number == before.services[KEY].number
    assert after.services[KEY].affinity_seconds == 30
    assert [str(address) for address, _ in slots_of(after)[KEY]] == ["10.244.0.2", "10.244.0.3"]
    new = tables_of([service("api", "10.96.0.20"), web], [], after)
    numbers = {str(key.address): value.number for key, value in new.services.items()}
    assert numbers[VIP] == before.services[KEY].number
    assert numbers["10.96.0.20"] != numbers[VIP]


_targets = st.lists(st.integers(1, 9), unique=True, max_size=8).map(
    lambda ends: [(ip_address(f"10.244.0.{end}"), 80) for end in ends]
)


@given(st.lists(_targets, min_size=1, max_size=4), st.data())
def test_on_every_node_backends_stand_in_one_order(sets: list[list[Target]], data: st.DataObject) -> None:
    """One node has seen all these endpoints come and go, another starts with the last."""
    wanted = sets[-1]
    web, tables = service("web", VIP), Tables()
    for targets in sets:
        tables = tables_of([web], [slice_of("web", *(str(address) for address, _ in targets))], tables)
    shuffled = data.draw(st.permutations([str(address) for address, _ in wanted]))
    fresh = tables_of([web], [slice_of("web", *shuffled)], Tables())
    assert slots_of(tables) == slots_of(fresh)
    assert {address for address, _ in slots_of(fresh).get(KEY, ())} == {address for address, _ in wanted}


def test_the_key_of_the_choice_is_the_clusters() -> None:
    one = choice_key("6b2ae5ec-8d2e-4fd0-9d50-9a1b6f4c7a10")
    assert one == choice_key("6b2ae5ec-8d2e-4fd0-9d50-9a1b6f4c7a10")
    assert one != choice_key("6b2ae5ec-8d2e-4fd0-9d50-9a1b6f4c7a11")
    assert len({one.first, one.second, 0}) == 3


@given(_targets, _targets, _targets)
def test_between_any_two_steps_a_lookup_finds_an_old_or_a_new_backend(
    one: list[Target], two: list[Target], three: list[Target]
) -> None:
    """Replays the steps of a change and looks up every index after each, as the programs do."""

    def tables(targets: list[Target], before: Tables) -> Tables:
        parts = [slice_of("web", *(str(address) for address, _ in targets), port="http:80/tcp")]
        return tables_of([service("web", VIP)], parts, before)

    state = tables(one, Tables())
    for targets in (two, three):
        wanted = tables(targets, state)
        steps = change(state, wanted)
        old, new = set(slots_of(state)[KEY]), set(slots_of(wanted)[KEY])
        live = Tables(dict(state.services), dict(state.backends), dict(state.members))

        def look(live: Tables = live, allowed: set[Target] = old | new) -> None:
            entry = live.services[KEY]
            for index in range(entry.backends):
                backend = live.backends[BackendKey(service=entry.number, index=index)]
                assert (backend.address, backend.port) in allowed

        gone_first = (*steps.drop_backends, *steps.drop_services)
        assert gone_first == (), "what a front leads to stays until it is led away"
        for member in steps.drop_members:
            del live.members[member]
        for key, value in steps.set_backends.items():
            live.backends[key] = value
            look()
        live.members.update(steps.set_members)
        live.services.update(steps.set_services)
        look()
        for gone in steps.remove_backends:
            del live.backends[gone]
            look()
        assert (live.services, live.backends, live.members) == (wanted.services, wanted.backends, wanted.members)
        state = wanted
    for address, port in three:
        number = state.services[KEY].number
        index = state.members[MemberKey(service=number, address=address, port=port)].index
        assert state.backends[BackendKey(service=number, index=index)].address == address


CONTEXT = NodeContext(
    node="n1", zone="a", addresses=(ip_address("172.30.0.11"),), external=(ip_network("203.0.113.0/24"),)
)
NAMES = ("web", "api", "db", "lb")
IPS = ("10.96.0.10", "10.96.0.20", "203.0.113.7", "203.0.113.8")
_services = st.builds(
    lambda name, created, ips, six, number, type_, external, balancers, policy, seconds: service(
        name,
        *dict.fromkeys((*ips, *(["fd00:10:96::10"] if six else []))),
        created=created,
        ports=(f"http:80+{number}/tcp",) if number else ("http:80/tcp",),
        type=type_,
        external_ips=" ".join(external),
        load_balancer_ips=" ".join(balancers),
        internal_policy=policy,
        external_policy=policy,
        affinity_seconds=seconds,
    ),
    st.sampled_from(NAMES),
    st.integers(1, 3),
    st.lists(st.sampled_from(IPS), max_size=2),
    st.booleans(),
    st.sampled_from([0, 30080, 30081]),
    st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
    st.lists(st.sampled_from(IPS), max_size=2),
    st.lists(st.sampled_from(IPS), max_size=1),
    st.sampled_from(["Cluster", "Local"]),
    st.sampled_from([0, 30]),
)
_endpoint = st.builds(
    lambda end, state, node, zone: f"10.244.0.{end} {state} {node} {zone}",
    st.integers(1, 5),
    st.sampled_from(["", "notready", "terminating"]),
    st.sampled_from(["", "@n2"]),
    st.sampled_from(["", "zone=a", "zone=b"]),
)
_slice = st.builds(
    lambda name, part, endpoints: slice_of(name, *endpoints, part=part),
    st.sampled_from((*NAMES, "none")),
    st.sampled_from(["a", "b"]),
    st.lists(_endpoint, max_size=4),
)
_pod = st.builds(
    lambda name, port, address, leaving: HostPortPod(
        pod=Pod(
            namespace="shop",
            name=name,
            uid=name,
            node="n1",
            terminating=leaving,
            host_ports=(HostPort(TCP, port, 8080, None),),
        ),
        addresses=(ip_address(address),),
    ),
    st.sampled_from(["one", "two"]),
    st.sampled_from([80, 30080]),
    st.sampled_from(["10.244.0.8", "10.244.0.9"]),
    st.booleans(),
)
_pods = st.lists(_pod, max_size=2, unique_by=lambda one: one.pod.name)
_without = st.frozensets(st.sampled_from([*(("service", "shop", name) for name in NAMES), ("pod", "shop", "one")]))
_change = st.one_of(
    _services.map(lambda one: (f"service.{one.name}", one)),
    st.sampled_from(NAMES).map(lambda name: (f"service.{name}", None)),
    _slice.map(lambda one: (f"slice.{one.name}", one)),
    st.sampled_from([f"slice.{name}-{part}" for name in NAMES for part in "ab"]).map(lambda key: (key, None)),
)
_closed = st.frozensets(st.sampled_from([("service", "shop", name) for name in NAMES]))
_rounds = st.lists(st.tuples(st.lists(_change, max_size=4), _pods, _without, _closed), min_size=1, max_size=6)


@settings(max_examples=300)
@given(_rounds)
def test_what_changes_a_little_at_a_time_is_what_all_would_be_made_again(rounds: list[Any]) -> None:
    objects, made, last = ServiceObjects(), Frontends(CONTEXT), 0
    tables = Tables()
    known: dict[str, Any] = {}
    refused, shut = frozenset[Any](), frozenset[Any]()
    for changes, pods, without, closed in rounds:
        names = {owner[1:] for owner in (without ^ refused) | (closed ^ shut) if owner[0] == "service"}
        for key, value in changes:
            names |= set(objects.put(key, value))
            known[key] = value
        moved = made.move(objects, names, pods, without, closed)
        refused, shut = without, closed
        steps = tables_module.moved(moved, made.backends, made.stand_ins, tables, last)
        last = max([last, *(one.number for one in steps.set_services.values())])
        tables_module.apply(tables, steps)

        there = [one for one in known.values() if one is not None]
        plan = frontends_of(
            [one for one in there if isinstance(one, Service)],
            [one for one in there if isinstance(one, EndpointSlice)],
            pods,
            CONTEXT,
            without,
            closed,
        )
        now = plan_in(made)
        assert (now.frontends, now.backends, now.stand_ins) == (plan.frontends, plan.backends, plan.stand_ins)
        assert sorted(now.refused, key=str) == sorted(plan.refused, key=str)
        wanted = tables_module.tables_of(plan.frontends, plan.backends, plan.stand_ins, tables)
        assert not len(change(tables, wanted))
        numbers = {frontend.backends: tables.services[key].number for key, frontend in plan.frontends.items()}
        assert len(set(numbers.values())) == len(numbers)


def test_who_is_refused_room_for_endpoints_keeps_its_frontends_with_nobody_behind_them() -> None:
    """The kernel then ends a connection to it at once; without a front it would wait until it gave up."""
    web, api = service("web", VIP), service("api", "10.96.0.20")
    objects = objects_of([web, api], [slice_of("web", "10.244.0.1"), slice_of("api", "10.244.0.2")])
    made = Frontends(NodeContext(node="n1"))
    tables = Tables()
    for closed, count in ((set(), 1), ({("service", "shop", "web")}, 0), (set(), 1)):
        moved = made.move(objects, {("shop", "web"), ("shop", "api")}, [], set(), closed)
        tables_module.apply(tables, tables_module.moved(moved, made.backends, made.stand_ins, tables, 10))
        assert {key.address: one.backends for key, one in tables.services.items()} == {
            ip_address(VIP): count,
            ip_address("10.96.0.20"): 1,
        }


def test_a_change_costs_the_services_that_it_is_about() -> None:
    many = [service(f"s{i}", f"10.96.{i // 250}.{i % 250 + 1}") for i in range(500)]
    objects, made = objects_of(many, []), Frontends(CONTEXT)
    made.move(objects, objects.names())
    names = objects.put("slice.shop.s7", slice_of("s7", ONE))
    assert {frontend.backends.name for frontend in made.move(objects, names).after.values()} == {"s7"}


def test_services_that_objects_are_about() -> None:
    objects = ServiceObjects()
    web = slice_of("web", ONE)
    assert objects.put("a", web) == (("shop", "web"),)
    assert objects.put("a", web) == ()
    assert objects.put("a", slice_of("web", ONE)) == ()
    assert set(objects.put("a", msgspec.structs.replace(web, service="other"))) == {("shop", "web"), ("shop", "other")}
    assert objects.slices(("shop", "web")) == ()
    assert objects.put("b", service("other", VIP)) == (("shop", "other"),)
    assert objects.put("a", None) == (("shop", "other"),)
    assert objects.put("b", None) == (("shop", "other"),)
    assert objects.names() == set()


def test_what_nobody_needs_any_more_goes_before_anything_is_added() -> None:
    before = tables_of([service("web", VIP), service("api", "10.96.0.20")], [slice_of("api", ONE, TWO)], Tables())
    wanted = tables_of([service("web", VIP), service("db", "10.96.0.30")], [slice_of("db", ONE)], before)
    steps = change(before, wanted)
    assert [field.name for field in fields(steps)][:4] == [
        "drop_members", "drop_services", "drop_ranges", "drop_backends",
    ]  # fmt: skip
    assert {str(key.address) for key in steps.drop_services} == {"10.96.0.20"}
    assert len(steps.drop_backends) == 2
    assert not steps.remove_backends


def test_a_frontend_whose_backends_found_no_room_stays_as_it_was() -> None:
    """It is not led to backends that are not there, and those that it leads to stay."""
    before = tables_of([service("web", VIP), service("api", "10.96.0.20")], [slice_of("web", ONE)], Tables())
    slices = [slice_of("web", TWO, THREE), slice_of("api", TWO)]
    wanted = tables_of([service("web", VIP), service("api", "10.96.0.20")], slices, before)
    web = before.services[KEY].number
    steps = whole(change(before, wanted), {web})
    assert {one.number for one in steps.set_services.values()} == {wanted.services[API].number}
    # What is there but not wanted is swept for it, together with the front; then all fits in its place.
    live = Tables(dict(before.services), dict(before.backends), dict(before.members), dict(before.ranges))
    tables_module.apply(live, swept(live, wanted, {web}))
    assert KEY not in live.services
    assert len(live.members) == 0
    tables_module.apply(live, change(live, wanted))
    assert live == wanted


API = ServiceKey(address=ip_address("10.96.0.20"), port=80, protocol=TCP)


@pytest.mark.parametrize(
    ("protocol", "now", "takes"),
    [("udp", (ONE,), True), ("udp", (), True), ("udp", (ONE, TWO, THREE), False), ("tcp", (ONE,), False)],
    ids=["one leaves", "all leave", "one comes", "of TCP"],
)
def test_a_change_that_takes_a_backend_from_a_udp_port_is_known_as_one(
    protocol: str, now: tuple[str, ...], takes: bool
) -> None:
    them = [service("dns", VIP, ports=(f"dns:53/{protocol}", "metrics:80/tcp"))]

    def tables(*endpoints: str, before: Tables) -> Tables:
        parts = [slice_of("dns", *endpoints, port=f"dns:5353/{protocol}", part="a")]
        return tables_of(them, [*parts, slice_of("dns", *endpoints, port="metrics:8080/tcp", part="b")], before)

    before = tables(ONE, TWO, before=Tables())
    steps = change(before, tables(*now, before=before))
    assert takes_udp_backends(steps, before.services, before) is takes
