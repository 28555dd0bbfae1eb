"""Who gives when a table is full."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.objects import HostPort, Pod
from services.dataplane.core.datapath import shares, sizes
from services.dataplane.core.datapath.layout import PrefixKey
from services.dataplane.core.datapath.maps import MAPS
from services.dataplane.core.datapath.shares import Claim, Shares, share
from services.dataplane.core.ipcache import entries as ipcache
from services.dataplane.core.loadbalancer import service_demand
from services.dataplane.core.loadbalancer import services as service_tables
from services.dataplane.core.loadbalancer.frontends import HostPortPod
from services.dataplane.core.loadbalancer.node_context import NodeContext
from services.dataplane.core.loadbalancer.pacing import LITTLE, PER_ENTRY, REST, Pacing
from services.dataplane.core.loadbalancer.services import Tables
from tests.core.dataplane.notation import endpoint, entries_of, frontends_of, service, slice_of

CONTEXT = NodeContext(node="n1", addresses=(ip_address("172.30.0.11"), ip_address("fd00:172:30::11")))


NOBODY: frozenset[tuple[str, str]] = frozenset()


def claim(group: str, created: int, *amounts: int) -> Claim:
    return Claim(group, (created, f"s{created}"), amounts)


def test_with_room_nobody_is_limited() -> None:
    assert share({"a": claim("a", 1, 60), "b": claim("b", 1, 40)}, (100,)) == {}


def test_the_newest_of_the_largest_gives() -> None:
    claims = {f"big{n}": claim("big", n, 30) for n in range(4)} | {"small": claim("small", 99, 20)}
    refused = share(claims, (100,))
    assert set(refused) == {"big3", "big2"}
    assert refused["big3"] == shares.Refused(0, "big", 120, 140, 100)


def test_a_newcomer_of_a_small_tenant_is_served_and_takes_from_the_largest() -> None:
    claims = {f"big{n}": claim("big", n, 25) for n in range(4)}
    assert share(claims, (100,)) == {}
    assert set(share(claims | {"new": claim("small", 1000, 5)}, (100,))) == {"big3"}


def test_tenants_that_are_alike_give_in_turn() -> None:
    claims = {f"{group}{n}": claim(group, n, 10) for group in "abc" for n in range(10)}
    refused = share(claims, (150,))
    kept = {group: [n for n in range(10) if f"{group}{n}" not in refused] for group in "abc"}
    assert kept == {group: [0, 1, 2, 3, 4] for group in "abc"}


def test_who_is_scarce_in_one_table_only_gives_there() -> None:
    """A tenant of many ports keeps them when backends are what is scarce."""
    claims = {"ports": claim("ports", 1, 50, 1), "ends1": claim("ends", 1, 1, 60), "ends2": claim("ends", 2, 1, 60)}
    assert set(share(claims, (100, 100))) == {"ends2"}


def test_a_claim_refused_for_one_table_asks_nothing_of_the_next() -> None:
    claims = {"a1": claim("a", 1, 90, 90), "a2": claim("a", 2, 90, 90), "b": claim("b", 3, 1, 5)}
    assert set(share(claims, (100, 100))) == {"a2"}


_claims = st.dictionaries(
    st.integers(0, 40),
    st.builds(
        lambda group, created, one, two: Claim(group, (created, str(created)), (one, two)),
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(0, 1000),
        st.integers(0, 50),
        st.integers(0, 50),
    ),
    max_size=30,
).map(lambda found: {key: replace(one, age=(one.age[0], str(key))) for key, one in found.items()})


@given(_claims, st.integers(0, 300), st.integers(0, 300), st.randoms())
def test_what_is_kept_fits_and_depends_on_no_order(claims: dict[int, Claim], one: int, two: int, order: Any) -> None:
    refused = share(claims, (one, two))
    kept = {key: claim for key, claim in claims.items() if key not in refused}
    assert all(sum(claim.amounts[table] for claim in kept.values()) <= room for table, room in ((0, one), (1, two)))
    shuffled = list(claims.items())
    order.shuffle(shuffled)
    assert share(dict(shuffled), (one, two)) == refused
    known: Shares[int] = Shares(2)
    known.put((key, Claim("z", (0, ""), (7, 7))) for key in [*claims, -1])
    known.put(shuffled)
    known.drop([-1, -2])
    assert set(known.refused((one, two))) == set(share(dict(shuffled), (one, two)))
    assert known.total == [sum(claim.amounts[table] for claim in claims.values()) for table in (0, 1)]


@given(_claims, st.integers(1, 300))
def test_who_asks_for_no_more_than_a_fair_share_keeps_all(claims: dict[int, Claim], room: int) -> None:
    groups = {claim.group for claim in claims.values()}
    refused = share(claims, (room, 1 << 30))
    for group in groups:
        asked = sum(claim.amounts[0] for claim in claims.values() if claim.group == group)
        if asked <= room / len(groups):
            assert not any(claims[key].group == group for key in refused)


def test_claims_change_a_few_at_a_time() -> None:
    known: Shares[str] = Shares(1)
    known.put((f"a{n}", claim("a", n, 10)) for n in range(10))
    assert known.refused((100,)) == {}
    known.put([("a3", claim("a", 3, 15))])
    assert set(known.refused((100,))) == {"a9"}
    known.put([("a3", claim("a", 3, 10))])
    assert known.refused((100,)) == {}


SERVICES = [
    (service("web", "10.96.0.1", "fd00:96::1"), 2, 6),
    (service("web", "10.96.0.1", type="NodePort", ports=("http:80+30080/tcp", "dns:53+30053/udp")), 6, 6),
    (service("web", "10.96.0.1", "fd00:96::1", type="NodePort", ports=("http:80+30080/tcp",)), 6, 6),
    (service("web", "10.96.0.1", type="NodePort", ports=("http:80+30080/tcp",), external_policy="Local"), 3, 12),
    (service("web", "10.96.0.1", ports=("http:80/tcp", "x:9/sctp")), 1, 6),
    (service("web", "10.96.0.1", fronted=False), 0, 0),
]


@pytest.mark.parametrize(("one", "frontends", "backends"), SERVICES)
def test_what_a_service_asks_for_is_never_less_than_what_it_gets(one: Any, frontends: int, backends: int) -> None:
    slices = [slice_of("web", "10.244.0.1", "10.244.0.2 notready", "10.244.0.3 @n2"), slice_of("web", *_SIX, part="b")]
    owner, asked = service_demand.of_service(one, slices, CONTEXT)
    assert owner == ("service", "shop", "web")
    assert asked.amounts[:2] == (frontends, backends)
    plan = frontends_of([one], slices, [], CONTEXT)
    tables = service_tables.tables_of(plan.frontends, plan.backends, plan.stand_ins, Tables())
    assert len(tables.services) <= frontends
    assert len(tables.backends) <= backends
    assert len(tables.ranges) <= asked.amounts[2]


_SIX = ("fd00:244::1", "fd00:244::2", "fd00:244::3")


def test_source_ranges_are_asked_for() -> None:
    one = service(
        "web",
        "10.96.0.1",
        type="LoadBalancer",
        load_balancer_ips="203.0.113.7",
        source_ranges="192.0.2.0/24 10.0.0.0/8",
    )
    _, asked = service_demand.of_service(one, [], CONTEXT)
    plan = frontends_of([one], [], [], CONTEXT)
    tables = service_tables.tables_of(plan.frontends, plan.backends, plan.stand_ins, Tables())
    assert 0 < len(tables.ranges) <= asked.amounts[2]


def test_pods_with_host_ports_ask_in_their_namespace() -> None:
    pod = Pod(
        namespace="shop", name="p", uid="u", node="n1", host_ports=(HostPort(6, 8080, 80), HostPort(17, 8053, 53))
    )
    one = HostPortPod(pod=pod, addresses=(ip_address("10.244.0.1"), ip_address("fd00:244::1")))
    owner, asked = service_demand.of_pod(one, CONTEXT)
    assert (owner, asked.group) == (("pod", "shop", "p"), "shop")
    plan = frontends_of([], [], [one], CONTEXT)
    assert 0 < len(plan.frontends) <= asked.amounts[0]
    assert not frontends_of([], [], [one], CONTEXT, {owner}).frontends


def test_a_refused_service_keeps_its_cluster_ip_from_others() -> None:
    web = service("web", "10.96.0.1")
    thief = service("thief", "10.96.0.2", type="LoadBalancer", load_balancer_ips="10.96.0.1")
    plan = frontends_of([web, thief], [], [], CONTEXT, {("service", "shop", "web")})
    assert {str(key.address) for key in plan.frontends} == {"10.96.0.2"}
    assert len(plan.refused) == 1


def test_a_node_s_newest_endpoints_are_left_out_and_own_addresses_never() -> None:
    foreign = [endpoint(f"n2 10.244.2.{n}", f"p{n}", at=(1, n)) for n in range(1, 9)]
    foreign += [endpoint(f"n3 10.244.3.{n}", f"q{n}", at=(1, n)) for n in range(1, 4)]
    wanted = entries_of("n1", foreign, own_addresses=[ip_address(f"172.30.0.{n}") for n in range(4)]).wanted
    refused = ipcache.refused(foreign, wanted, 12)
    assert set(refused) == {PrefixKey.host(ip_address(f"10.244.2.{n}")) for n in (6, 7, 8)}
    assert {why.group for why in refused.values()} == {"n2"}


def test_tables_double_while_memory_allows() -> None:
    small, large = sizes.limits(4 << 30, 0.05, {}), sizes.limits(64 << 30, 0.05, {})
    entries = {spec.name: spec.entries for spec in MAPS if spec.name in sizes.PARTS}
    assert small.first == large.first == entries
    assert all(small.most[name] >= entries[name] for name in entries)
    assert large.most["am_services"] > small.most["am_services"]
    now = {"am_services": 65_536}
    assert large.next({"am_services": 52_000}, now) == {}
    assert large.next({"am_services": 53_000}, now) == {"am_services": 131_072}
    assert large.next({"am_services": 200_000}, now) == {"am_services": 262_144}
    assert large.next({"am_services": 1 << 30}, now) == {"am_services": large.most["am_services"]}
    full = sum(
        large.most[spec.name] * (spec.key_size + spec.value_size + sizes.OVERHEAD)
        for spec in MAPS
        if spec.name in sizes.PARTS
    )
    assert full <= (64 << 30) * 0.05


def test_a_size_of_the_settings_is_kept() -> None:
    fixed = sizes.limits(64 << 30, 0.05, {"am_services": 4096, "am_backends": 0})
    assert fixed.first["am_services"] == fixed.most["am_services"] == 4096
    assert fixed.next({"am_services": 1 << 20}, {"am_services": 4096}) == {}
    assert fixed.first["am_backends"] == 262_144


def test_who_makes_little_work_never_waits_and_who_makes_much_waits_alone() -> None:
    pacing = Pacing()
    shop, big, small = ("shop", "web"), ("mallory", "big"), ("mallory", "small")
    assert pacing.take({big: 200_000, shop: 10}, 100) == (frozenset((big, shop)), NOBODY)
    wait = pacing.wait([big], 100)
    assert wait == pytest.approx(200_000 * PER_ENTRY * REST)
    assert pacing.take({big: 200_000, shop: 10}, 101) == (frozenset((shop,)), frozenset((big,)))
    assert pacing.take({small: 1}, 101) == (NOBODY, frozenset((small,)))
    assert pacing.take({big: 200_000}, 100 + wait) == (frozenset((big,)), NOBODY)
    for moment in range(1000):
        assert pacing.take({shop: LITTLE}, 200 + moment / 50) == (frozenset((shop,)), NOBODY)
    assert pacing.wait([], 300) == 0


def test_many_small_ones_of_one_namespace_are_much() -> None:
    pacing = Pacing()
    crowd = {("mallory", f"s{n}"): 1000 for n in range(66)}
    admitted, later = pacing.take(crowd, 0)
    assert (len(admitted), len(later)) == (66, 0)
    assert pacing.take(crowd, 0.5)[0] == frozenset()
