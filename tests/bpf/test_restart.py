"""An agent that starts again: what the maps hold of pods that went meanwhile goes, what lives stays as it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chassis.telemetry.log import Log
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.core.datapath import layout as at
from services.dataplane.policy.enforce import Enforcer
from tests.bpf.world import World

pytestmark = pytest.mark.privileged

NODE_COOKIE, ALIVE, DEAD = 1, 11, 12


@pytest.fixture
def enforcer(world: World) -> Enforcer:
    """Pods a and b have flows; b went while nobody looked."""
    nothing: Any = SimpleNamespace()
    made = Enforcer(world.tables, nothing, nothing, Log("test"), budget=1000)
    made.node_cookie = NODE_COOKIE
    for cookie in (NODE_COOKIE, ALIVE, DEAD):
        world.tables.cookies.put(at.CookieKey(cookie=cookie), at.CookieMark(node=cookie == NODE_COOKIE))
    for port in range(1, 6):
        world.connect(world.a, world.b, port)
    return made


def alive(world: World) -> list[Any]:
    """What the agent finds: a alone."""
    a = world.a
    link = at.Link(identity=a.identity, address4=a.address4, address6=a.address6, mac=a.mac, endpoint=a.number)
    return [SimpleNamespace(index=a.number, cookie=ALIVE, addresses=(), link=lambda: link, delivery=lambda: None)]


def test_namespaces_of_the_dead_go(world: World, enforcer: Enforcer) -> None:
    enforcer.restore(alive(world))
    assert world.tables.cookies.items() == {
        at.CookieKey(cookie=NODE_COOKIE): at.CookieMark(node=True),
        at.CookieKey(cookie=ALIVE): at.CookieMark(),
    }


def test_budgets_and_flows_of_the_dead_go(world: World, enforcer: Enforcer) -> None:
    enforcer.restore(alive(world))
    before = world.tables.budgets.get(at.EndpointKey(endpoint=world.a.number))
    stale = enforcer.stale_budgets(alive(world))
    assert stale == {world.b.number}
    FlowCollector(world.datapath).forget_endpoints(stale)
    assert {key.endpoint for key in world.tables.budgets.items()} == {at.NODE, world.a.number}
    assert {flow.endpoint for flow in world.tables.flows.items().values()} == {world.a.number}
    assert world.tables.budgets.get(at.EndpointKey(endpoint=world.a.number)) == before
    assert enforcer.stale_budgets(alive(world)) == frozenset()


def test_limits_follow_the_settings_and_counts_stay(world: World, enforcer: Enforcer) -> None:
    made = Enforcer(world.tables, SimpleNamespace(), SimpleNamespace(), Log("test"), budget=7)  # type: ignore[arg-type]
    made.limit_flows(FlowCollector(world.datapath))
    budget = world.tables.budgets.get(at.EndpointKey(endpoint=world.a.number))
    assert budget is not None
    assert (budget.egress_limit, budget.ingress_limit, budget.egress) == (7, 7, 5)
