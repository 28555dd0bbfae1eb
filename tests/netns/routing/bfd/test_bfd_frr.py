"""BFD of this node with FRR's bfdd as the switch, which says AdminDown and sets other timers than BIRD can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.routing.core.bfd.bgp import Consequence, consequence
from services.routing.core.bfd.packet import Diagnostic, State
from services.routing.core.bfd.session import Failure
from services.routing.core.bfd.status import why_not_up
from tests.netns.routing.bfd.ends import FAST, KEYS, OWN, PEER, Agent, Wire, until
from tests.netns.routing.bfd.frr import Frr
from tests.netns.routing.conftest import Netns

pytestmark = pytest.mark.privileged
BOTH = dict.fromkeys(KEYS.values(), FAST)


@pytest.fixture
def frr(nodes: tuple[Netns, Netns]) -> Iterator[Frr]:
    made = Frr(nodes[1])
    yield made
    made.close()


async def up(agent: Agent, frr: Frr) -> None:
    await frr.start()
    agent.start(BOTH)
    await agent.up(*BOTH)
    await until(lambda: all(frr.peer(family).get("status") == "up" for family in KEYS), "FRR says up")


def failures(agent: Agent) -> list[Failure]:
    return [failure for call, _, failure in agent.calls if failure is not None and call == "down"]


async def test_both_families_come_up_and_agree(agent: Agent, frr: Frr) -> None:
    await up(agent, frr)
    await until(lambda: all(status.detection_us == 150_000 for status in agent.bfd.statuses.values()), "negotiated")
    for family, key in KEYS.items():
        peer, status = frr.peer(family), agent.bfd.statuses[key]
        assert (peer["remote-id"], peer["id"]) == (status.discriminator, status.remote.discriminator)
        assert (peer["remote-transmit-interval"], peer["remote-detect-multiplier"]) == (50, 3)


async def test_frr_that_dies_is_gone_within_the_detection_time(agent: Agent, frr: Frr, wire: Wire) -> None:
    await up(agent, frr)
    await until(lambda: all(status.detection_us == 150_000 for status in agent.bfd.statuses.values()), "negotiated")
    frr.kill("bfdd")
    await until(lambda: len(failures(agent)) == len(BOTH), "both are down")
    assert {failure.diagnostic for failure in failures(agent)} == {Diagnostic.TIME_EXPIRED}
    for family in KEYS:
        last = wire.sent_by(PEER[family])[-1].at
        after = [one.packet.state for one in wire.sent_by(OWN[family]) if one.at > last]
        assert 2 <= after.index(State.DOWN) <= 5


async def test_switched_off_at_the_peer_is_no_failure(agent: Agent, frr: Frr, wire: Wire) -> None:
    await up(agent, frr)
    for family in KEYS:
        frr.configure(family, "shutdown")
    await until(lambda: len(failures(agent)) == len(BOTH), "both are down")
    for failure in failures(agent):
        assert (failure.diagnostic, failure.remote_state) == (Diagnostic.NEIGHBOR_DOWN, State.ADMIN_DOWN)
        assert consequence(failure, restarting=False) is Consequence.NONE
    for family, key in KEYS.items():
        fault = why_not_up(agent.bfd.statuses[key])
        assert fault is not None
        assert fault.fault == f"{PEER[family]} on fab0 has switched BFD off"
        frr.configure(family, "no shutdown")
    await agent.up(*BOTH)


async def test_switched_off_at_this_side_is_no_failure_there(agent: Agent, frr: Frr) -> None:
    await up(agent, frr)
    agent.bfd.sessions(dict.fromkeys(BOTH, replace(FAST, enabled=False)))
    await until(lambda: all(frr.peer(family).get("status") == "down" for family in KEYS), "FRR says down")
    assert {frr.peer(family)["remote-diagnostic"] for family in KEYS} == {"administratively down"}
    agent.bfd.sessions(BOTH)
    await agent.up(*BOTH)


async def test_other_intervals_both_ways_by_polls(agent: Agent, frr: Frr, wire: Wire) -> None:
    await up(agent, frr)
    agent.bfd.sessions(dict.fromkeys(BOTH, replace(FAST, transmit_us=300_000, receive_us=200_000, multiplier=4)))
    for family in KEYS:
        frr.configure(family, "transmit-interval 400", "receive-interval 100", "detect-multiplier 5")

    def agreed() -> bool:
        return all(
            (status.transmit_us, status.expected_us, status.detection_us) == (300_000, 400_000, 2_000_000)
            for status in agent.bfd.statuses.values()
        ) and all(frr.peer(family)["remote-transmit-interval"] == 300 for family in KEYS)

    await until(agreed, "both follow")
    assert failures(agent) == []
    for address in (*OWN.values(), *PEER.values()):
        assert any(one.packet.final for one in wire.sent_by(address))
        assert not any(one.packet.final and one.packet.poll for one in wire.sent_by(address))
