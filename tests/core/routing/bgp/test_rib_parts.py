"""What concerns a whole table is done in bounded parts, and whatever happens between two of them, the end is the same.

Bounds are counts: how many paths one ``decide`` takes in hand. What a table must hold in the end is made from scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from services.routing.core.bgp.communities import NO_LLGR
from services.routing.core.bgp.peers import Action, FilterRule, TableSettings
from services.routing.core.bgp.rib.paths import Reach
from services.routing.core.bgp.rib.tables import LOOKS_PER_DECISION
from services.routing.core.bgp.values import lies_in, network_of
from tests.core.routing.bgp.rib_speaker import V4, V6, Speaker, attributes, prefix

MANY = 2000
PART = 50
MOST = LOOKS_PER_DECISION * PART // 2
"""Paths that one ``decide`` of PART prefixes looks at."""
TEXTS = [f"10.{number // 256}.{number % 256}.0/24" for number in range(MANY)]
FIRST, SECOND = TEXTS[: MANY // 2], TEXTS[MANY // 2 :]
HOP, OTHER_HOP = "172.31.0.1", "172.31.1.1"
PLAIN, OTHER = attributes(65001, hop=HOP), attributes(65002, 65003, 65004, hop=OTHER_HOP)


def speaker(**more: object) -> Speaker:
    """``a`` has the better paths to all, ``b`` worse ones to all."""
    one = Speaker(most_paths=1)
    one.up("a", 65001, HOP, **more)  # type: ignore[arg-type]
    one.up("b", 65002, OTHER_HOP)
    one.learn("a", TEXTS, PLAIN)
    one.learn("b", TEXTS, OTHER)
    one.decide()
    return one


def parts(one: Speaker) -> int:
    """Decide all, a part at a time; how many parts that was. None takes more in hand than it may."""
    count = 0
    while one.tables.undecided:
        before = dict(one.tables.accepted(V4))
        decided = one.tables._loc[V4].decided
        one.tables.decide(PART)
        after = one.tables.accepted(V4)
        changed = sum(after.get(key) != paths for key, paths in before.items())
        assert changed <= MOST
        assert one.tables._loc[V4].decided - decided <= PART
        count += 1
    return count


def used(one: Speaker) -> dict[str, list[str]]:
    """The prefixes that each peer's paths are used of."""
    found: dict[str, list[str]] = {}
    for text, names in one.used().items():
        found.setdefault(names, []).append(text)
    return {names: sorted(texts) for names, texts in found.items()}


def lost(one: Speaker) -> None:
    one.tables.peer_down("a")


def expired(one: Speaker) -> None:
    one.tables.peer_down("a", (V4,))
    one.tables.stale_expired("a", V4)


def rejected(one: Speaker) -> None:
    none = FilterRule(action=Action.REJECT, family=V4)
    one.tables.settings_changed("a", TableSettings(imports=(none,)))


def unreachable(one: Speaker) -> None:
    one.reach[HOP] = None
    one.tables.next_hops_changed()


@pytest.mark.parametrize("happens", [lost, expired, rejected, unreachable])
def test_a_whole_table_goes_in_parts(happens: Callable[[Speaker], None]) -> None:
    one = speaker()
    happens(one)
    assert parts(one) >= MANY // MOST
    assert used(one) == {"b": sorted(TEXTS)}


def test_what_goes_is_gone_for_who_looks_before_it_has_gone() -> None:
    one = speaker()
    lost(one)
    assert one.tables.undecided >= MANY
    assert one.tables.count("a") == {}
    assert list(one.tables.received("a", V4)) == []
    assert list(one.tables.received("a", V4, [prefix(TEXTS[0])])) == []
    assert one.tables.hops_of("a") == set()
    assert {str(hop.address) for hop in one.tables.hops_of("b")} == {OTHER_HOP}


def test_a_peer_that_is_back_before_all_is_gone_has_what_it_sends_again() -> None:
    one = speaker(families=(V4, V6))
    lost(one)
    one.tables.decide(PART)
    one.up("a", 65001, HOP)  # without IPv6
    assert one.tables.count("a")[V4].received == 0
    one.learn("a", FIRST, PLAIN)
    assert one.tables.count("a")[V4].received == len(FIRST)
    one.tables.decide(PART)
    one.unlearn("a", " ".join(FIRST[:10]))
    one.tables.end_of_rib("a", V4)
    parts(one)
    assert used(one) == {"a": sorted(FIRST[10:]), "b": sorted([*FIRST[:10], *SECOND])}
    assert one.tables.count("a")[V4].received == len(FIRST) - 10


def test_the_most_prefixes_of_a_peer_do_not_count_what_goes() -> None:
    one = Speaker()
    one.up("a", 65001, HOP, most_prefixes=MANY)
    one.learn("a", TEXTS, PLAIN)
    lost(one)
    one.up("a", 65001, HOP, most_prefixes=len(FIRST))
    limits = one.learn("a", FIRST, PLAIN)
    assert [limit.exceeded for limit in limits] == [False], "a warning, and no more"
    [limit] = one.learn("a", SECOND[:1], PLAIN)
    assert limit.exceeded
    parts(one)
    assert used(one) == {"a": sorted(FIRST)}


def test_what_is_sent_again_before_the_sweep_reaches_it_stays() -> None:
    one = speaker()
    one.tables.peer_down("a", (V4,))
    one.up("a", 65001, HOP)
    one.tables.end_of_rib("a", V4)
    one.tables.decide(PART)
    one.learn("a", SECOND, PLAIN)
    parts(one)
    assert used(one) == {"a": sorted(SECOND), "b": sorted(FIRST)}


def test_long_lived_routes_are_marked_in_parts_and_what_is_sent_again_is_none() -> None:
    one = Speaker(most_paths=1)
    one.up("a", 65001, HOP)
    one.learn("a", TEXTS, PLAIN)
    one.learn("a", TEXTS[:100], attributes(65001, hop=HOP, communities=(NO_LLGR,)))
    one.tables.peer_down("a", (V4,))
    one.tables.long_lived_begun("a", V4)
    one.tables.decide(PART)
    one.up("a", 65001, HOP)
    one.learn("a", SECOND, PLAIN)
    parts(one)
    paths = {str(text): found[0] for text, found in one.tables.chosen(V4).items()}
    assert len(paths) == MANY - 100, "what must not be long-lived goes"
    assert sum(path.long_lived for path in paths.values()) == len(FIRST) - 100
    assert one.tables.count("a")[V4].stale == len(FIRST) - 100


def test_policy_that_changes_while_it_is_applied_is_the_last_one() -> None:
    one = speaker()
    rejected(one)
    one.tables.decide(PART)
    one.learn("a", FIRST[:10], attributes(65001, hop=HOP, med=7))  # judged by the present policy at once
    one.tables.settings_changed("a", TableSettings())
    one.unlearn("a", " ".join(SECOND))
    parts(one)
    assert used(one) == {"a": sorted(FIRST), "b": sorted(SECOND)}


def test_a_next_hop_that_comes_back_while_its_prefixes_are_looked_for() -> None:
    one = speaker()
    unreachable(one)
    one.tables.decide(PART)
    one.learn("b", ["11.0.0.0/24"], OTHER)
    one.reach[HOP] = Reach()
    one.reach[OTHER_HOP] = None
    one.tables.next_hops_changed()
    one.tables.decide(PART)
    one.learn("a", ["11.0.1.0/24"], PLAIN)
    parts(one)
    assert used(one) == {"a": sorted([*TEXTS, "11.0.1.0/24"])}, "nothing leads to b's next hop"


def test_a_flapping_next_hop_costs_one_search_at_a_time() -> None:
    one = speaker()
    for number in range(20):
        one.reach[HOP] = None if number % 2 == 0 else Reach()
        one.tables.next_hops_changed()
        one.tables.decide(1)
        assert one.tables._loc[V4].unsearched <= 2 * MANY
    parts(one)
    assert used(one) == {"a": sorted(TEXTS)}


def test_a_peer_that_comes_is_sent_all_though_the_table_changes_meanwhile() -> None:
    one = speaker()
    one.up("c", 65009, "172.31.2.1")
    one.decide()
    first = one.tables.pending("c", PART)
    assert sum(len(run.prefixes) for batch in first.batches for run in batch.reachable) == PART
    one.up("d", 65010, "172.31.3.1")  # of the same group, which has all by now
    one.unlearn("a", " ".join(TEXTS[:10]))
    one.unlearn("b", " ".join(TEXTS[:10]))
    one.decide()
    for name in ("c", "d"):
        table: set[str] = set()
        for text in one.drain(name, PART)[0]:
            table.add(text[1:]) if text[0] == "+" else table.discard(text[1:])
        rest = set(TEXTS[10:])
        assert table >= rest - ({*TEXTS[:PART]} if name == "c" else set())
        assert not table & {*TEXTS[:10]}


def sent(one: Speaker, name: str) -> set[str]:
    return {str(network_of(V4, text)) for text, _, _ in one.tables.sent(name, V4)}


def exporting(*names: str) -> Speaker:
    """``a`` has the better paths to all, which peers of one group have been sent."""
    one = speaker()
    for number, name in enumerate(names, 1):
        one.up(name, 65009 + number, f"172.31.{number + 1}.1")
    one.decide()
    for name in names:
        one.drain(name)
    return one


NOT_FIRST = TableSettings(exports=tuple(
    FilterRule(action=Action.REJECT, family=V4, network=ip_network(f"10.{number}.0.0/16")) for number in range(4)
))  # fmt: skip
LATER = sorted(text for text in TEXTS if int(text.split(".")[1]) > 3)


def test_another_export_policy_is_applied_in_parts_and_sends_what_differs() -> None:
    one = exporting("c")
    one.tables.settings_changed("c", NOT_FIRST)
    assert parts(one) >= MANY // PART
    assert sent(one, "c") == set(LATER)
    assert sorted(one.drain("c", PART)[0]) == sorted(f"-{text}" for text in set(TEXTS) - set(LATER))
    one.tables.settings_changed("c", TableSettings())
    one.tables.decide(PART)
    one.tables.settings_changed("c", NOT_FIRST)
    parts(one)
    assert one.drain("c", MANY) == ([], []), "it is as it was"


def test_peers_of_one_group_whose_policy_changes_stay_together() -> None:
    one = exporting("c", "d", "e")
    for name in ("c", "d"):
        one.tables.settings_changed(name, NOT_FIRST)
    parts(one)
    for limit in (PART, MANY):
        [c, d] = [one.tables.pending(name, limit) for name in ("c", "d")]
        assert c.batches[0].unreachable[0] is d.batches[0].unreachable[0], "it is worked out once for both"
    assert not one.tables.owes("e")
    assert (sent(one, "c"), sent(one, "d"), sent(one, "e")) == (set(LATER), set(LATER), set(TEXTS))


def test_a_peer_whose_policy_becomes_anothers_is_of_its_group_once_it_has_been_sent_all() -> None:
    one = exporting("c", "d")
    one.tables.settings_changed("d", NOT_FIRST)
    parts(one)
    one.drain("d")
    one.tables.settings_changed("c", NOT_FIRST)
    parts(one)
    one.learn("a", ["11.0.2.0/24"], PLAIN)
    one.decide()
    assert len(one.drain("c")[0]) == MANY - len(LATER) + 1
    one.drain("d")
    one.learn("a", ["11.0.0.0/24"], PLAIN)
    one.decide()
    one.learn("a", ["11.0.1.0/24"], PLAIN)
    one.decide()
    [c, d] = [one.tables.pending(name).batches[0].reachable for name in ("c", "d")]
    assert (len(c), len(c[0].prefixes)) == (1, 2)
    assert c[0] is d[0]
    assert len(one.tables._loc[V4].groups) == 2, "of a and b, and of both"
    one.tables.peer_down("c")
    one.tables.peer_down("d")
    assert len(one.tables._loc[V4].groups) == 1


def test_a_peer_that_comes_while_policy_changes_is_sent_nothing_by_the_former_one() -> None:
    one = exporting("c")
    one.tables.settings_changed("c", NOT_FIRST)
    one.tables.decide(PART)
    one.up("d", 65019, "172.31.9.1", exports=NOT_FIRST.exports)
    written: list[str] = []
    while one.tables.undecided or one.tables.owes("d"):
        one.tables.decide(PART)
        written += one.drain("d", PART)[0]
    assert sorted(written) == [f"+{text}" for text in LATER]
    assert sorted(one.drain("c")[0]) == sorted(f"-{text}" for text in set(TEXTS) - set(LATER))


def test_a_peer_that_goes_while_its_policy_changes_takes_its_group_along() -> None:
    one = exporting("c")
    one.tables.settings_changed("c", NOT_FIRST)
    one.tables.peer_down("c")
    parts(one)
    one.up("c", 65010, "172.31.2.1")
    one.tables.settings_changed("c", NOT_FIRST)
    one.tables.decide(PART)
    one.tables.peer_down("c")
    parts(one)
    assert (len(one.tables._loc[V4].groups), one.tables._loc[V4]._changing) == (1, [])


@dataclass(frozen=True)
class Case:
    one: str
    wide: str
    inside: bool


LIES_IN = [
    Case("10.1.2.0/24", "10.0.0.0/8", inside=True),
    Case("10.1.2.0/24", "10.1.0.0/17", inside=True),
    Case("10.1.130.0/24", "10.1.0.0/17", inside=False),
    Case("10.1.2.0/24", "10.1.2.0/24", inside=True),
    Case("10.1.2.0/24", "10.1.2.0/25", inside=False),
    Case("10.1.2.0/24", "0.0.0.0/0", inside=True),
    Case("0.0.0.0/0", "0.0.0.0/1", inside=False),
    Case("fd00:1::/64", "fd00::/13", inside=True),
    Case("fd08:1::/64", "fd00::/13", inside=False),
]


@pytest.mark.parametrize("case", LIES_IN)
def test_a_prefix_lies_in_another(case: Case) -> None:
    assert lies_in(prefix(case.one), prefix(case.wide)) is case.inside
