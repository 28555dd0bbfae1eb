"""Which names are asked for most, and what search lists ask for in vain."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.dataplane.core.datapath.dns_layout import DnsOutcome
from services.dataplane.core.monitor.dns_counts import Sample
from services.dataplane.core.monitor.dns_names import (
    MAX_COUNTED,
    MAX_PENDING,
    SearchList,
    TopNames,
    is_search_of,
    most,
    text_of,
)

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")


def sample(name: str, outcome: DnsOutcome = DnsOutcome.USEFUL, *, is_whole: bool = True) -> Sample:
    return Sample(labels=tuple(name.split(".")), is_whole=is_whole, outcome=outcome)


def asked_by_search_list(name: str, answered: str) -> list[Sample]:
    """What a resolver with ndots:5 asks until a name is answered."""
    tried = [f"{name}.{suffix}" for suffix in SEARCH] + [name]
    vain = tried[: tried.index(answered)]
    return [sample(one, DnsOutcome.NXDOMAIN) for one in vain] + [sample(answered)]


@pytest.mark.parametrize(
    ("longer", "name", "is_one"),
    [
        ("www.example.com.shop.svc.cluster.local", "www.example.com", True),
        ("api.prod.shop.svc.cluster.local", "api.prod.svc.cluster.local", True),
        ("api.shop.svc.cluster.local", "api.prod.svc.cluster.local", False),
        ("www.example.com", "www.example.com", False),
        ("www.example.com", "www.example.com.shop.svc.cluster.local", False),
        ("other.example.com", "example.com", False),
        ("a.b.c.d", "x.c.d", False),
    ],
)
def test_a_search_list_puts_labels_in_after_the_name(longer: str, name: str, is_one: bool) -> None:
    assert is_search_of(tuple(longer.split(".")), tuple(name.split("."))) is is_one


@pytest.mark.parametrize(
    ("name", "answered", "searched"),
    [
        ("www.example.com", "www.example.com", 3),
        ("api.prod", "api.prod.svc.cluster.local", 1),
        ("api", "api.shop.svc.cluster.local", 0),
    ],
)
def test_what_is_asked_in_vain_before_an_answer_is_counted(name: str, answered: str, searched: int) -> None:
    found = SearchList()
    for one in asked_by_search_list(name, answered):
        found.add(one)
    assert (found.sampled_nxdomain, found.searched) == (searched, searched)


def test_a_name_that_is_nowhere_is_no_search_lists_fault() -> None:
    found = SearchList()
    for suffix in (*SEARCH, ""):
        found.add(sample(f"typo.{suffix}".rstrip("."), DnsOutcome.NXDOMAIN))
    found.add(sample("www.example.com"))
    assert (found.sampled_nxdomain, found.searched) == (4, 0)


def test_a_query_in_vain_is_counted_once() -> None:
    found = SearchList()
    for one in [*asked_by_search_list("a.b", "a.b"), sample("a.b"), sample("a.b", DnsOutcome.EMPTY)]:
        found.add(one)
    assert found.searched == 3


def test_no_more_names_wait_for_their_answer_than_may() -> None:
    found = SearchList()
    found.add(sample("first.cluster.local", DnsOutcome.NXDOMAIN))
    for number in range(MAX_PENDING):
        found.add(sample(f"n{number}.cluster.local", DnsOutcome.NXDOMAIN))
    found.add(sample("first"))
    assert found.searched == 0
    found.add(sample("n0"))
    assert found.searched == 1


@given(st.lists(st.sampled_from([f"n{number}" for number in range(60)]), max_size=400))
@example([f"n{number}" for number in range(60)] * 2 + ["n1"] * 9)
def test_names_are_counted_as_space_saving_promises(asked: list[str]) -> None:
    """No more names than may be; a count is never too small, and too large by the rarest's at most."""
    top, real = TopNames(), Counter(asked)
    for name in asked:
        top.add(name, DnsOutcome.USEFUL)
    assert len(top.counts) <= MAX_COUNTED
    assert top.sampled == len(asked)
    assert sum(one.sampled for one in top.counts.values()) == len(asked)
    for name, count in real.items():
        if count > len(asked) / MAX_COUNTED:
            assert name in top.counts
    assert all(one.sampled >= real[name] for name, one in top.counts.items())


def test_the_most_frequent_of_two_parts_stand_first() -> None:
    first, second = TopNames(), TopNames()
    for name in ("a", "b", "b", "c"):
        first.add(name, DnsOutcome.NXDOMAIN)
    for name in ("c", "c", "b"):
        second.add(name, DnsOutcome.RETRIED)
    found = [(name, one.sampled, one.nxdomain, one.retried) for name, one in most((first, second), 2)]
    assert found == [("b", 3, 2, 1), ("c", 3, 1, 2)]


@pytest.mark.parametrize(
    ("whole", "name", "text"),
    [
        (True, "a.b", "a.b"),
        (True, "abcdefghij", "abcdefghij"),
        (True, "abcdefghijk", "abcdefg..."),
        (False, "a.b", "a.b..."),
        (True, "", "."),
    ],
)
def test_a_name_is_cut_where_it_is_too_long(whole: bool, name: str, text: str) -> None:
    one = Sample(labels=tuple(name.split(".")) if name else (), is_whole=whole, outcome=DnsOutcome.USEFUL)
    assert text_of(one, 10) == text
