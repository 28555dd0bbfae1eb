"""What a BGP speaker measures of itself, for /metrics: sessions by state, prefixes and messages by peer, routes in use,
and those of them that are not in the kernel.

Everything is read when somebody scrapes. A peer's label is the BGPPeer's name, or ``mesh``: one that selects many nodes
is one label, so that there are as many as a person has made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proto.bgp import SessionReport
from services.routing.bgp.answers import reported
from services.routing.bgp.router import Router
from services.routing.core.bgp.reports import STATES
from services.routing.core.bgp.values import Family
from services.routing.learnt import Pass

Labels = tuple[str, ...]


class Totals:
    """Sums over sessions that only grow, though sessions and what they count begin again at zero and go."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Labels], int] = {}
        self._sums: Counter[Labels] = Counter()

    def add(self, present: Mapping[tuple[str, Labels], int]) -> Mapping[Labels, int]:
        """The sums by labels, with what each session (its name and labels) has counted by now."""
        for key, count in present.items():
            before = self._seen.get(key, 0)
            self._sums[key[1]] += count - before if count >= before else count
        self._seen = dict(present)
        return self._sums


class BgpMetrics(Collector):
    """Reads the router at each scrape, and what became of its routes at last."""

    def __init__(self, router: Callable[[], Router | None], passed: Callable[[], Pass]) -> None:
        self._router = router
        self._passed = passed
        self._messages = Totals()

    def describe(self) -> Iterable[Metric]:
        """None: names are not compared with those of another agent in the process."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families, with present values."""
        router = self._router()
        sessions = reported(router) if router is not None else []
        yield _states(sessions)
        yield _prefixes(sessions)
        yield self._counted(sessions)
        routes = GaugeMetricFamily("airmesh_bgp_routes", "Prefixes that a path is chosen for", labels=["family"])
        for family in Family:
            routes.add_metric([family.name.lower()], len(router.rib.chosen(family)) if router is not None else 0)
        yield routes
        absent = GaugeMetricFamily("airmesh_bgp_routes_absent", "Learnt routes not in the kernel", labels=["reason"])
        passed = self._passed()
        absent.add_metric(["refused"], passed.refused)
        absent.add_metric(["no_number"], passed.crowded)
        yield absent

    def _counted(self, sessions: Iterable[SessionReport]) -> Metric:
        messages = CounterMetricFamily("airmesh_bgp_messages", "BGP messages of sessions", labels=["peer", "direction"])
        present: dict[tuple[str, Labels], int] = {}
        for one in sessions:
            present[one.peer, (_label(one), "received")] = one.received_messages
            present[one.peer, (_label(one), "sent")] = one.sent_messages
        for labels, count in self._messages.add(present).items():
            messages.add_metric(labels, count)
        return messages


def _states(sessions: Iterable[SessionReport]) -> Metric:
    family = GaugeMetricFamily("airmesh_bgp_sessions", "Peers by the state of their session", labels=["state"])
    found = Counter(one.state for one in sessions)
    for state in STATES.values():
        family.add_metric([state], found[state])
    return family


def _prefixes(sessions: Iterable[SessionReport]) -> Metric:
    family = GaugeMetricFamily(
        "airmesh_bgp_prefixes", "Prefixes received from peers and sent to them", labels=["peer", "family", "direction"]
    )
    found: Counter[Labels] = Counter()
    for one in sessions:
        for count in one.families:
            found[_label(one), f"ipv{count.family}", "received"] += count.received
            found[_label(one), f"ipv{count.family}", "sent"] += count.sent
    for labels, number in sorted(found.items()):
        family.add_metric(labels, number)
    return family


def _label(session: SessionReport) -> str:
    return session.peer.partition("/")[0]


def register(router: Callable[[], Router | None], passed: Callable[[], Pass]) -> Callable[[], Awaitable[None]]:
    """Shows them on /metrics until what it returns is called."""
    collector = BgpMetrics(router, passed)
    REGISTRY.register(collector)

    async def hide() -> None:
        REGISTRY.unregister(collector)

    return hide
