"""Routes that the kernel does not follow, told apart by what it takes instead."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from kit.tunnels import METRIC, ROUTE_PROTOCOL
from proto.findings import Finding
from services.routing.core.doctor.routes import Repair, Routing, Taken, addresses, check
from services.routing.core.fib import PODS, Route

BLOCK = ip_network("10.244.0.64/26")
LAST = ip_address("10.244.0.127")
OURS = Route(destination=BLOCK, via=ip_address("172.30.0.12"), link=2)
TAKEN = Taken(destination=BLOCK, table=254, kind=1, via=OURS.via, link=2, metric=METRIC, protocol=ROUTE_PROTOCOL)
WELL = Routing(
    node="n1",
    desired=(OURS,),
    routes=(OURS,),
    taken={LAST: TAKEN},
    links={2: "eth0", 3: "eth1"},
    holder=lambda _: "n2",
    repairs=(),
    now=1000,
)


def found(seen: Routing) -> Finding:
    (one,) = check(seen)
    assert one.about == "Pair n1 n2"
    return one


def test_nothing_is_found_where_the_kernel_takes_our_route() -> None:
    assert list(check(WELL)) == []


def test_which_addresses_are_asked_for() -> None:
    longer = Route(destination=ip_network("10.244.0.64/28"), link=3, protocol=12, metric=32)
    pod = replace(longer, destination=ip_network("10.244.0.70/32"), protocol=PODS)
    elsewhere = replace(longer, destination=ip_network("10.9.0.0/24"))
    six = replace(longer, destination=ip_network("fd00::/64"))
    asked = addresses((OURS,), (OURS, longer, pod, elsewhere, six))
    assert asked == (LAST, ip_address("10.244.0.79"))


def test_a_longer_prefix() -> None:
    part = ip_network("10.244.0.64/28")
    other = Taken(destination=part, table=254, kind=1, via=None, link=3, metric=32, protocol=12)
    one = found(replace(WELL, taken={LAST: TAKEN, part[-1]: other}))
    assert (one.code, one.cause) == (
        "route-shadowed",
        "a route of bird shadows the one to 10.244.0.64/26: it has a longer prefix",
    )
    assert one.fixes[0].command == "ip route del 10.244.0.64/28 dev eth1 proto bird metric 32"
    assert one.fixes[0].undo == "ip route add 10.244.0.64/28 dev eth1 proto bird metric 32"


def test_a_better_metric() -> None:
    one = found(replace(WELL, taken={LAST: replace(TAKEN, link=3, via=None, metric=20, protocol=11)}))
    assert one.code == "route-shadowed"
    assert "metric 20, before our" in one.cause


def test_another_table() -> None:
    one = found(replace(WELL, taken={LAST: replace(TAKEN, link=3, table=77, protocol=4)}))
    assert one.code == "route-other-table"
    assert one.fixes[0].command.endswith("table 77")


def test_a_missing_route() -> None:
    default = replace(TAKEN, destination=ip_network("0.0.0.0/0"), via=ip_address("172.30.0.1"), protocol=4)
    assert found(replace(WELL, routes=(), taken={LAST: default})).code == "route-missing"
    assert found(replace(WELL, routes=(), taken={LAST: "ENETUNREACH"})).code == "route-missing"
    assert found(replace(WELL, taken={LAST: "EINVAL"})).code == "route-shadowed"


def test_a_route_that_is_removed_again_and_again() -> None:
    times = tuple(Repair(destination=BLOCK, at=at) for at in (950, 960, 970))
    one = found(replace(WELL, repairs=times))
    assert (one.code, one.since) == ("route-removed", 950)
    assert list(check(replace(WELL, repairs=times[1:]))) == []
    assert list(check(replace(WELL, repairs=times, now=1015))) == []


def test_what_is_removed_again_and_again_is_not_missing_besides() -> None:
    times = tuple(Repair(destination=BLOCK, at=990) for _ in range(4))
    assert found(replace(WELL, repairs=times, routes=(), taken={LAST: "ENETUNREACH"})).code == "route-removed"


def test_what_nobody_wants_is_no_matter() -> None:
    other = ip_address("10.9.9.9")
    assert list(check(replace(WELL, taken={LAST: TAKEN, other: "ENETUNREACH"}))) == []
