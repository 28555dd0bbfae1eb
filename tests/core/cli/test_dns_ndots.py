"""Which namespaces' search lists are worth fewer dots, by what their pods were measured to ask."""

from __future__ import annotations

from cli.reports.dns_ndots import FEWEST, proposals
from cli.reports.dns_pods import PodFigures, pods_dns
from proto.dns_pods import PodDns, PodDnsReport


def measured(*pods: PodDns) -> tuple[PodFigures, ...]:
    return pods_dns({"n1": PodDnsReport(node="n1", pods=pods)}, ("n1",)).pods


def pod(namespace: str, name: str, useful: int, denied: int, searched: int = 10) -> PodDns:
    return PodDns(
        namespace=namespace,
        pod=name,
        seconds=60.0,
        queries=useful + denied,
        answers=(("NOERROR", useful), ("NXDOMAIN", denied)),
        sampled_nxdomain=10,
        searched=searched,
    )


def test_a_namespace_that_searches_in_vain_is_proposed_with_what_was_measured() -> None:
    web, api = pod("shop", "web", 200, 800), pod("shop", "api", 100, 0)
    (found,) = proposals(measured(web, api, pod("quiet", "one", 500, 0)))
    assert found.name == "ndots/shop"
    assert "73% of 1100 queries of 2 pods" in found.evidence
    assert "most of them web's" in found.evidence
    assert "a useful answer takes 3.7 queries" in found.evidence
    assert found.effect.startswith("1.0 queries for a useful answer")


def test_the_costliest_comes_first() -> None:
    found = proposals(measured(pod("a", "p", 100, 400), pod("b", "p", 200, 900), pod("c", "p", 100, 400)))
    assert [one.name for one in found] == ["ndots/b", "ndots/a", "ndots/c"]


def test_nothing_is_proposed_on_too_little() -> None:
    few = pod("few", "p", FEWEST // 10, FEWEST // 2)
    misspelt = pod("misspelt", "p", 200, 800, searched=0)
    useless = pod("useless", "p", 0, 800)
    unsampled = PodDns(namespace="un", pod="p", seconds=60.0, queries=900, answers=(("NOERROR", 9), ("NXDOMAIN", 891)))
    assert proposals(measured(few, misspelt, useless, unsampled)) == ()
