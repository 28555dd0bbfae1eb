"""Which tuning decisions measurements lead to, and that each one's settings are read by a real grammar."""

from __future__ import annotations

from ipaddress import ip_address
from math import inf
from random import Random

import pytest

from proto.dns import Settings
from services.dns.core.change import judge
from services.dns.core.corefile import CAPACITY, Recipe, render
from services.dns.core.merge import merge
from services.dns.core.samples import Counts, quantile
from services.dns.core.sizing import AHEAD_SECONDS, ahead
from services.dns.core.tuning import SETTINGS_OF, TUNABLE, Window, proposals, summed, together, tuned

TWO = Recipe(upstreams=(ip_address("192.0.2.1"), ip_address("2001:db8::1")))
TEXT = render(TWO)


def latency(seconds: float, count: int) -> dict[float, int]:
    return {bound: (count if bound >= seconds else 0) for bound in (0.001, 0.004, 0.016, 0.064, 0.256, inf)}


FIRST, SECOND = "192.0.2.1:53", "[2001:db8::1]:53"
CASES = {
    "cache-capacity": Counts(queries=9000, hits=4000, misses=5000, evictions=120, fullest=CAPACITY),
    "cache-prefetch": Counts(queries=900, hits=800, misses=100, upstreams={FIRST: latency(0.064, 100)}),
    "serve-stale": Counts(queries=1000, by_rcode={"NOERROR": 980, "SERVFAIL": 20}, unhealthy=3),
    "negative-ttl": Counts(
        queries=1000, denied=400, upstreams={FIRST: latency(0.001, 600), SECOND: latency(0.001, 400)}
    ),
    "autopath": Counts(queries=1000, by_rcode={"NXDOMAIN": 600, "NOERROR": 400}),
    "forward-policy": Counts(queries=300, upstreams={FIRST: latency(0.001, 60), SECOND: latency(0.064, 60)}),
}


def names(counts: Counts, recipe: Recipe = TWO, settings: Settings = (), text: str | None = TEXT) -> list[str]:
    window = Window(seconds=60.0, counts=counts)
    return [one.name for one in proposals(window, recipe, settings, text)]


@pytest.mark.parametrize("name", CASES)
def test_each_measurement_leads_to_its_proposal_once(name: str) -> None:
    window = Window(seconds=60.0, counts=CASES[name])
    (found,) = proposals(window, TWO, (), TEXT)
    assert (found.name, [key for key, _ in found.settings]) == (name, list(SETTINGS_OF[name]))
    assert found.evidence
    assert found.effect
    after = merge(tuned(TWO, found.settings), TEXT)
    assert after.unmet == ()
    assert merge(TWO, after.text).text == TEXT, "the way back leaves nothing"
    again = names(CASES[name], settings=found.settings, text=after.text)
    assert name not in again or name in ("cache-capacity", "negative-ttl"), "these grow step by step"
    assert proposals(window, TWO, (), TEXT, refused={name}) == ()


def test_nothing_is_proposed_on_little_or_on_nothing() -> None:
    assert names(Counts()) == []
    for counts in CASES.values():
        few = Counts(queries=10, hits=9, misses=1, by_rcode={"NXDOMAIN": 6, "SERVFAIL": 4}, unhealthy=counts.unhealthy)
        assert names(few) == []
        assert names(counts, text=None) == [], "there is no Corefile"
        assert names(counts, text="broken {") == []


def test_the_cache_doubles_up_to_its_bound() -> None:
    settings: Settings = ()
    sizes = []
    for _ in range(5):
        full = Counts(queries=9000, evictions=600, fullest=tuned(TWO, settings).capacity or CAPACITY)
        text = merge(tuned(TWO, settings), TEXT).text
        for one in proposals(Window(seconds=60.0, counts=full), TWO, settings, text):
            settings = together(settings, one.settings)
            sizes.append(int(dict(settings)["capacity"]))
    assert sizes == [19968, 39936, 65536]


def test_what_a_person_wrote_is_not_tuned() -> None:
    theirs = TEXT.replace("cache 30 {\n", "cache 30 {\n        prefetch 5 2m 20%\n")
    assert names(CASES["cache-prefetch"], text=theirs) == []
    other = TEXT.replace("forward . 192.0.2.1:53", "forward . 192.0.2.9").replace(
        " # airmesh\n        max", "\n        max"
    )
    assert names(CASES["forward-policy"], text=other) == []


def test_settings_out_of_bounds_are_passed_over() -> None:
    for name, (least, most) in TUNABLE.items():
        for text in ("", "-1", "x", str(most + 1), *(() if least == 0 else (str(least - 1),)), "9" * 40, "٣"):
            assert tuned(TWO, ((name, text),)) == TWO
        assert tuned(TWO, ((name, str(most)),)) != TWO
    assert tuned(TWO, (("nothing", "1"),)) == TWO


def test_any_order_of_settings_leaves_the_same_text_and_none_leaves_the_first() -> None:
    random = Random(7)
    for _ in range(60):
        chosen = random.sample(sorted(TUNABLE), random.randint(0, len(TUNABLE)))
        settings = tuple((name, str(TUNABLE[name][1])) for name in chosen)
        at_once, text = merge(tuned(TWO, settings), TEXT).text, TEXT
        for count in range(1, len(settings) + 1):
            text = merge(tuned(TWO, settings[:count]), text).text
        assert sorted(text.split("\n")) == sorted(at_once.split("\n"))
        assert merge(TWO, text).text == TEXT


def test_windows_add_up() -> None:
    both = summed([Window(seconds=10.0, counts=Counts(queries=3, fullest=5), asked=2, unanswered=1)] * 2)
    assert (both.seconds, both.asked, both.unanswered) == (20.0, 4, 2)
    assert (both.counts.queries, both.counts.fullest) == (6, 5)
    assert both.measured.queries == 6


@pytest.mark.parametrize(
    ("rates", "least", "most"),
    [
        ([], 0, 0),
        ([100.0], 100, 100),
        ([100.0] * 6, 100, 100),
        ([600.0, 500.0, 400.0, 300.0], 600, 600),
        ([100.0, 200.0, 300.0, 400.0], 990, 1010),
        ([0.0, 0.0, 0.0, 10_000.0], 10_000, 40_000),
    ],
)
def test_the_load_a_minute_ahead_follows_the_trend_upwards_alone(rates: list[float], least: float, most: float) -> None:
    at = [(10.0 * number, rate) for number, rate in enumerate(rates)]
    assert least <= ahead(at, AHEAD_SECONDS) <= most


def test_lookups_of_fewer_queries_are_judged_by_as_many_slow_ones() -> None:
    """1,000 useful answers, 20 of which waited for an upstream, with eight vain queries to each two and with none."""
    searched = Counts(queries=5000, by_rcode={"NOERROR": 1000, "NXDOMAIN": 4000}, durations={0.002: 4980, 0.064: 5000})
    walked = Counts(queries=1000, by_rcode={"NOERROR": 1000}, durations={0.002: 980, 0.064: 1000})
    before, after = (Window(seconds=60.0, counts=one).measured for one in (searched, walked))
    assert quantile(searched.durations, 0.99) == 0.002, "by queries it would be worse"
    assert before.p99_ms == after.p99_ms == 64
    assert judge(before, after, early=False) is None
    slower = Counts(queries=1000, by_rcode={"NOERROR": 1000}, durations={0.002: 980, 0.064: 985, 0.256: 1000})
    assert judge(before, Window(seconds=60.0, counts=slower).measured, early=False) is not None
    nothing = Window(seconds=60.0, counts=Counts(queries=100, by_rcode={"SERVFAIL": 100}, durations={0.002: 100}))
    assert nothing.measured.p99_ms == 2
