"""BFD of this node with BIRD 2 as the switch: up, and down for every reason, seen from both ends and on the link.

How soon a peer that is gone is noticed is counted in packets: how many this side still sends in state Up after the last
one that it got. Whoever keeps the machine busy keeps both waiting.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address

import pytest

from services.routing.core.bfd.bgp import Consequence, consequence
from services.routing.core.bfd.packet import ControlPacket, Diagnostic, Discard, State, write_packet
from services.routing.core.bfd.session import Failure, Settings
from services.routing.core.bfd.sessions import Key
from services.routing.core.bfd.status import why_not_up
from tests.netns.routing.bfd.ends import FAST, KEYS, OWN, PEER, Agent, Bird, Wire, send_from, until
from tests.netns.routing.conftest import Netns

pytestmark = pytest.mark.privileged
BOTH = dict.fromkeys(KEYS.values(), FAST)
PATIENT = Settings(transmit_us=300_000, receive_us=300_000, multiplier=20)
"""Whoever keeps the machine busy ends no such session: BIRD waits for six seconds, this side for one."""


async def up(agent: Agent, bird: Bird, settings: Settings = FAST) -> None:
    """Sessions of both families, as both ends see them."""
    bird.start()
    agent.start(dict.fromkeys(BOTH, settings))
    await agent.up(*BOTH)
    await until(lambda: all(bird.state(family) == "Up" for family in KEYS), "BIRD says Up")


def failures(agent: Agent) -> dict[Key, Failure]:
    """What was reported down, each once."""
    found = [(key, failure) for call, key, failure in agent.calls if call == "down" and failure is not None]
    assert len(found) == len(dict(found))
    return dict(found)


async def test_both_families_come_up_at_the_negotiated_intervals(agent: Agent, bird: Bird, wire: Wire) -> None:
    await up(agent, bird)
    await until(lambda: all(status.detection_us == 150_000 for status in agent.bfd.statuses.values()), "negotiated")
    for family, key in KEYS.items():
        interface, state, _, interval, timeout = bird.sessions()[OWN[family]]
        assert (interface, state, interval, timeout) == ("fab0", "Up", "0.050", "0.150")
        status = agent.bfd.statuses[key]
        assert (status.transmit_us, status.expected_us) == (50_000, 50_000)
        assert why_not_up(status) is None
        assert agent.calls.count(("up", key, None)) == 1
        own = wire.sent_by(OWN[family])
        assert {one.hops for one in own} == {255}
        assert len({one.port for one in own}) == 1
        assert own[0].port >= 49152
        assert {one.packet.my_discriminator for one in own} == {status.discriminator}
        assert [one.packet.state for one in own[:1]] == [State.DOWN]
        first_up = next(one for one in own if one.packet.state is State.UP)
        assert first_up.packet.poll, "other intervals than before are said by a poll"


async def test_a_peer_that_dies_is_gone_within_the_detection_time(agent: Agent, bird: Bird, wire: Wire) -> None:
    await up(agent, bird)
    await asyncio.sleep(0.5)
    bird.kill()
    await until(lambda: len(failures(agent)) == len(BOTH), "both are down")
    for family, key in KEYS.items():
        failure = failures(agent)[key]
        assert failure.diagnostic is Diagnostic.TIME_EXPIRED
        assert consequence(failure, restarting=False) is Consequence.END
        last = wire.sent_by(PEER[family])[-1].at
        after = [one.packet for one in wire.sent_by(OWN[family]) if one.at > last]
        still_up = [packet for packet in after if packet.state is State.UP]
        assert 2 <= len(still_up) <= 5, "three intervals of 50 ms hold three or four packets 37 to 50 ms apart"
        down = after[len(still_up)]
        assert (down.state, down.diagnostic, down.your_discriminator) == (State.DOWN, Diagnostic.TIME_EXPIRED, 0)
        fault = why_not_up(agent.bfd.statuses[key])
        assert fault is not None
        assert "fallen silent" in fault.fault
    bird.start()
    await agent.up(*BOTH)


async def test_this_side_dies_and_bird_notices(agent: Agent, bird: Bird) -> None:
    await up(agent, bird)
    first = agent.pid
    await agent.kill()
    agent.end()
    await until(lambda: all(bird.state(family) == "Down" for family in KEYS), "BIRD says Down")
    agent.begin()
    agent.start(BOTH)
    await agent.up(*BOTH)
    assert agent.pid != first


async def test_a_link_that_goes_down_and_comes_back(agent: Agent, bird: Bird, nodes: tuple[Netns, Netns]) -> None:
    await up(agent, bird)
    nodes[1].ip("link set fab0 down")
    await until(lambda: len(failures(agent)) == len(BOTH), "both are down")
    assert {failure.diagnostic for failure in failures(agent).values()} == {Diagnostic.TIME_EXPIRED}
    nodes[1].ip("link set fab0 up")
    nodes[1].ip("addr replace fd00:172:30::12/64 dev fab0 nodad")  # the kernel takes it away with the link
    await agent.up(*BOTH)


async def test_an_interface_that_is_made_again(agent: Agent, bird: Bird, nodes: tuple[Netns, Netns]) -> None:
    await up(agent, bird)
    nodes[0].ip("link del fab0")
    await until(lambda: len(failures(agent)) == len(BOTH), "both are down")

    def faults() -> list[str]:
        return [fault.fault for status in agent.bfd.statuses.values() if (fault := why_not_up(status))]

    await until(lambda: [one for one in faults() if "no interface fab0" in one], f"the reason: {faults()}")
    nodes[0].ip(f"link add fab0 type veth peer name fab0 netns {nodes[1].name}")
    for netns, number in zip(nodes, (11, 12), strict=True):
        netns.ip("link set fab0 up")
        netns.ip(f"addr add 172.30.0.{number}/24 dev fab0")
        netns.ip(f"addr add fd00:172:30::{number}/64 dev fab0 nodad")
    await agent.up(*BOTH)


async def test_switched_off_at_this_side_is_no_failure_there(agent: Agent, bird: Bird, wire: Wire) -> None:
    await up(agent, bird)
    agent.bfd.sessions({key: replace(FAST, enabled=False) for key in BOTH})
    await until(lambda: len(failures(agent)) == len(BOTH), "both are down")
    for failure in failures(agent).values():
        assert consequence(failure, restarting=False) is Consequence.NONE
    await until(lambda: all(bird.state(family) == "Down" for family in KEYS), "BIRD says Down")
    for family, key in KEYS.items():
        last = wire.sent_by(OWN[family])[-1].packet
        assert (last.state, last.diagnostic) == (State.ADMIN_DOWN, Diagnostic.ADMIN_DOWN)
        answers = [one.packet for one in wire.sent_by(PEER[family]) if one.packet.state is State.DOWN]
        assert answers[-1].diagnostic == Diagnostic.NEIGHBOR_DOWN, "it was heard, not missed"
        fault = why_not_up(agent.bfd.statuses[key])
        assert fault is not None
        assert "switched off at this node" in fault.fault
    agent.bfd.sessions(BOTH)
    await agent.up(*BOTH)


async def test_bird_that_stops_its_bfd_says_nothing(agent: Agent, bird: Bird) -> None:
    """BIRD 2.0 sends no AdminDown: this is a failure like any other."""
    await up(agent, bird)
    bird.ask("disable switch")
    await until(lambda: len(failures(agent)) == len(BOTH), "both are down")
    for failure in failures(agent).values():
        assert failure.diagnostic is Diagnostic.TIME_EXPIRED
        assert not failure.independent, "BIRD leaves the C bit clear"
        assert consequence(failure, restarting=False) is Consequence.END
        assert consequence(failure, restarting=True) is Consequence.NONE
    bird.ask("enable switch")
    await agent.up(*BOTH)


async def test_other_intervals_of_this_side_by_a_poll(agent: Agent, bird: Bird, wire: Wire) -> None:
    await up(agent, bird)
    slow = replace(FAST, transmit_us=200_000, receive_us=100_000, multiplier=5)
    agent.bfd.sessions(dict.fromkeys(BOTH, slow))
    await until(lambda: all(row[3:] == ["0.100", "1.000"] for row in bird.sessions().values()), "BIRD follows")
    await until(lambda: all(one.transmit_us == 200_000 for one in agent.bfd.statuses.values()), "this side follows")
    for family in KEYS:
        asked = [one for one in wire.sent_by(OWN[family]) if one.packet.poll and one.packet.transmit_us == 200_000]
        assert asked
        answered = next(one for one in wire.sent_by(PEER[family]) if one.packet.final and one.at > asked[0].at)
        assert not answered.packet.poll
    assert failures(agent) == {}


async def test_other_intervals_of_the_peer_by_its_poll(agent: Agent, bird: Bird, wire: Wire) -> None:
    await up(agent, bird)
    bird.write(interval_ms=200, multiplier=4)
    assert "Reconfigured" in bird.ask("configure")
    await until(lambda: all(one.detection_us == 800_000 for one in agent.bfd.statuses.values()), "this side follows")
    await until(
        lambda: all(row[3:] == ["0.200", "0.600"] for row in bird.sessions().values()), bird.ask("show bfd sessions")
    )
    for family in KEYS:
        asked = [one for one in wire.sent_by(PEER[family]) if one.packet.poll and one.packet.transmit_us == 200_000]
        assert asked
        assert any(one.packet.final for one in wire.sent_by(OWN[family]) if one.at > asked[0].at)
    assert failures(agent) == {}


async def test_where_no_interface_is_named_the_kernel_takes_one(agent: Agent, bird: Bird) -> None:
    bird.start()
    keys = [key._replace(interface="") for key in BOTH]
    agent.start(dict.fromkeys(keys, FAST))
    await agent.up(*keys)
    assert all(bird.state(family) == "Up" for family in KEYS)


async def test_an_address_that_comes_later(agent: Agent, bird: Bird, nodes: tuple[Netns, Netns]) -> None:
    for family, length in ((4, 24), (6, 64)):
        nodes[0].ip(f"addr del {OWN[family]}/{length} dev fab0")
    bird.start()
    agent.start(BOTH)
    await until(lambda: len(agent.bfd.statuses) == len(BOTH), "both are there")
    for key in BOTH:
        fault = why_not_up(agent.bfd.statuses[key])
        assert fault is not None
        assert f"{key.local} is no address of this node" in fault.fault
    nodes[0].ip(f"addr add {OWN[4]}/24 dev fab0")
    nodes[0].ip(f"addr add {OWN[6]}/64 dev fab0 nodad")
    await agent.up(*BOTH)


async def test_a_link_local_peer(agent: Agent, bird: Bird, nodes: tuple[Netns, Netns]) -> None:
    def link_local(netns: Netns) -> str:
        words = netns.ip("-6 -o addr show dev fab0 scope link").split()
        return words[words.index("inet6") + 1].partition("/")[0]

    own, peer = (link_local(netns) for netns in nodes)
    bird.file.write_text(
        bird.file.read_text().replace(
            "protocol bfd switch {", f'protocol bfd switch {{ neighbor {own} dev "fab0" local {peer};'
        )
    )
    key = Key(ip_address(own), ip_address(peer), "fab0")
    bird.start()
    agent.start({key: FAST})
    await agent.up(key)
    await until(lambda: bird.state(6) == "none" or bird.sessions(), "BIRD answers")
    assert bird.sessions()[ip_address(own)][1] == "Up"


async def test_what_came_through_a_router_is_not_heard(agent: Agent, bird: Bird, nodes: tuple[Netns, Netns]) -> None:
    """A packet that would end the session, but for its TTL."""
    await up(agent, bird, PATIENT)
    for family, key in KEYS.items():
        ending = ControlPacket(
            state=State.DOWN,
            multiplier=3,
            my_discriminator=agent.bfd.statuses[key].remote.discriminator,
            your_discriminator=agent.bfd.statuses[key].discriminator,
            transmit_us=1_000_000,
            receive_us=1_000_000,
        )
        send_from(nodes[1], PEER[family], OWN[family], write_packet(ending), hops=254)
    await until(lambda: all(one.discard is Discard.HOPS for one in agent.bfd.statuses.values()), "discarded, and said")
    assert failures(agent) == {}
    assert {status.state for status in agent.bfd.statuses.values()} == {State.UP}
