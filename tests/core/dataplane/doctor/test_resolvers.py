"""What pods ask of name service: a resolver elsewhere that is asked in vain, and names that a search list makes."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import msgspec
import pytest

from proto.dns_pods import PodDns, PodDnsName
from services.dataplane.core.doctor.resolvers import (
    ELSEWHERE,
    SEARCH_LIST,
    Resolver,
    check_resolvers,
    check_search_lists,
    parse,
)

DNS, OTHER = ip_address("10.96.0.10"), ip_address("192.0.2.53")
FULL = "web.shop.svc.cluster.local"
POD = PodDns(
    namespace="shop",
    pod="client",
    seconds=60.0,
    queries=120,
    answers=(("NOERROR", 20), ("NXDOMAIN", 100)),
    sampled=100,
    searched=80,
    names=(PodDnsName(name=FULL, sampled=20, nxdomain=20),),
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", Resolver()),
        ("nameserver 10.96.0.10\nsearch a b\noptions ndots:5 timeout:1\n", Resolver(nameservers=(DNS,), ndots=5)),
        ("# nameserver 1.1.1.1\nnameserver\t192.0.2.53 \nnameserver x\n", Resolver(nameservers=(OTHER,))),
        ("nameserver fe80::1%eth0\noptions ndots:x\n", Resolver(nameservers=(ip_address("fe80::1"),))),
        ("options ndots:2\noptions ndots:3\n", Resolver(ndots=3)),
        ("options\nnameserver\n\x00\n", Resolver()),
    ],
)
def test_a_file_is_read_as_resolvers_do(text: str, wanted: Resolver) -> None:
    assert parse(text) == wanted


def named(*names: PodDnsName) -> PodDns:
    return msgspec.structs.replace(POD, names=names)


def elsewhere(pod: PodDns = POD, *, by: Mapping[str, Resolver] | None = None) -> list[str]:
    files = {"shop/client": Resolver(nameservers=(OTHER,))} if by is None else by
    return [one.code for one in check_resolvers("n1", [pod], files, {DNS})]


def test_a_resolver_elsewhere_that_is_asked_for_the_cluster_in_vain() -> None:
    (one,) = check_resolvers("n1", [POD], {"shop/client": Resolver(nameservers=(OTHER,))}, {DNS})
    assert (one.code, one.about) == (ELSEWHERE, "Pod shop/client")
    assert str(OTHER) in one.cause
    assert FULL in one.observed[1].text
    assert str(DNS) in one.expected.text


@pytest.mark.parametrize(
    "by",
    [
        {},
        {"shop/client": Resolver()},
        {"shop/client": Resolver(nameservers=(DNS,))},
        {"shop/client": Resolver(nameservers=(OTHER, DNS))},
        {"shop/client": Resolver(nameservers=(ip_address("127.0.0.53"),))},
    ],
)
def test_the_clusters_own_or_an_unknown_resolver_is_no_fault(by: Mapping[str, Resolver]) -> None:
    assert elsewhere(by=by) == []


@pytest.mark.parametrize(
    ("pod", "is_found"),
    [
        (named(PodDnsName(name="example.com", sampled=20, nxdomain=20)), False),
        (named(PodDnsName(name=FULL, sampled=20, nxdomain=19)), False),
        (named(PodDnsName(name=FULL, sampled=2, nxdomain=2)), False),
        (named(PodDnsName(name=FULL, sampled=9, nxdomain=5, retried=4)), True),
        (named(PodDnsName(name=FULL, sampled=9, nxdomain=9), PodDnsName(name="db." + FULL, sampled=1)), False),
        (named(), False),
    ],
)
def test_it_asks_for_names_of_the_cluster_and_gets_none(pod: PodDns, is_found: bool) -> None:
    assert elsewhere(pod) == ([ELSEWHERE] if is_found else [])


def test_without_a_name_service_nobody_says_what_would_be_right() -> None:
    assert not list(check_resolvers("n1", [POD], {"shop/client": Resolver(nameservers=(OTHER,))}, ()))


@pytest.mark.parametrize(
    ("changed", "service", "is_found"),
    [
        ({}, "", True),
        ({}, "shop/web", True),
        ({}, "shop/db", False),
        (
            {"names": (PodDnsName(name="web.default.svc.cluster.local", sampled=1),), "namespace": "default"},
            "default/web",
            True,
        ),
        ({"names": (PodDnsName(name="web.shop", sampled=1),)}, "shop/web", True),
        ({"names": (PodDnsName(name="website.shop.svc", sampled=1),)}, "shop/web", False),
        ({"searched": 49}, "", False),
        ({"queries": 59}, "", False),
        ({"sampled": 20, "searched": 20}, "", False),
    ],
)
def test_names_that_only_a_search_list_makes(changed: dict[str, object], service: str, is_found: bool) -> None:
    pod = msgspec.structs.replace(POD, **changed)
    files = {f"{pod.namespace}/client": Resolver(nameservers=(DNS,), ndots=5)}
    found = list(check_search_lists("n1", [pod], files, service=service))
    assert [one.code for one in found] == ([SEARCH_LIST] if is_found else [])
    for one in found:
        assert one.fault == ("service" if service else "dns")
        assert one.affects == ((f"Service {service}",) if service else ())
        assert "6.0 for each useful answer" in one.observed[1].text
        assert "ndots:5" in one.observed[2].text
