"""The process that runs BFD and its agent: who outlives whom, who is started again, and what the peer sees of it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from linux.netns import command
from services.routing.bfd import client, messages
from services.routing.bfd.client import Bfd
from services.routing.core.bfd.packet import PORT, State
from services.routing.core.bfd.status import why_not_up
from tests.netns.routing.bfd.ends import FAST, KEYS, OWN, PEER, Agent, Bird, Wire, in_netns, until
from tests.netns.routing.conftest import Netns

pytestmark = pytest.mark.privileged
BOTH = dict.fromkeys(KEYS.values(), FAST)
HELD_SECONDS = 5.0
FLOOD = """
import socket, sys
to = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
    while True:
        opened.sendto(bytes(24), to)
"""


async def up(agent: Agent, bird: Bird) -> None:
    bird.start()
    agent.start(BOTH)
    await agent.up(*BOTH)
    await until(lambda: all(bird.state(family) == "Up" for family in KEYS), "BIRD says Up")


def fell(wire: Wire) -> list[State]:
    """States other than Up that one end or the other said after it had said Up."""
    found: list[State] = []
    for address in (*OWN.values(), *PEER.values()):
        states = [one.packet.state for one in wire.sent_by(address)]
        found += [state for state in states[states.index(State.UP) :] if state is not State.UP]
    return found


@pytest.mark.parametrize("held", ["by a call in C", "by Python"])
async def test_three_times_50_ms_hold_while_the_agents_loop_is_held(
    agent: Agent, bird: Bird, wire: Wire, held: str
) -> None:
    """For 5 s nothing else runs in the agent's interpreter, or only in slices; neither end sees its peer go."""
    await up(agent, bird)
    before = len(wire.sent_by(OWN[4]))
    if held == "by a call in C":
        ctypes.PyDLL(None).usleep(int(HELD_SECONDS * 1e6))  # PyDLL keeps the interpreter's lock
    else:
        until_then = time.monotonic() + HELD_SECONDS
        while time.monotonic() < until_then:
            sum(number * number for number in range(1000))
    during = len(wire.sent_by(OWN[4])) - before
    assert during >= HELD_SECONDS / 0.05 * 0.6, "as many packets as without"
    assert fell(wire) == []
    await asyncio.sleep(0.1)
    assert [call for call, _, _ in agent.calls] == ["up", "up"]


async def test_sessions_stay_up_while_the_agent_restarts(agent: Agent, bird: Bird, wire: Wire) -> None:
    await up(agent, bird)
    pid, numbers = agent.pid, {key: status.discriminator for key, status in agent.bfd.statuses.items()}
    await agent.kill()
    await asyncio.sleep(1)
    agent.calls.clear()
    agent.begin()
    agent.start(BOTH)
    await agent.up(*BOTH)
    assert agent.pid == pid
    assert {key: status.discriminator for key, status in agent.bfd.statuses.items()} == numbers
    assert len(agent.calls) == len(BOTH)
    assert all(("up", key, None) in agent.calls for key in BOTH)
    assert fell(wire) == []


async def test_a_restarted_agent_with_other_wishes(agent: Agent, bird: Bird, wire: Wire) -> None:
    """What it no longer wants ends in AdminDown; what it wants otherwise changes in place."""
    await up(agent, bird)
    await agent.kill()
    agent.begin()
    agent.start({KEYS[4]: replace(FAST, multiplier=5)})
    await until(lambda: bird.state(6) == "Down", "BIRD heard of the end")
    await agent.up(KEYS[4])
    assert wire.sent_by(OWN[6])[-1].packet.state is State.ADMIN_DOWN
    assert wire.sent_by(OWN[4])[-1].packet.multiplier == 5
    assert agent.bfd.statuses.keys() == {KEYS[4]}


async def test_without_an_agent_sessions_end_in_good_order(agent: Agent, bird: Bird, wire: Wire) -> None:
    agent.linger = 1.0
    agent.begin()
    await up(agent, bird)
    assert agent.pid
    await agent.kill()
    await until(lambda: not agent.pid, "the process ends")
    for address in OWN.values():
        assert wire.sent_by(address)[-1].packet.state is State.ADMIN_DOWN


async def test_nothing_wanted_ends_the_process_and_a_wish_starts_it(agent: Agent, bird: Bird) -> None:
    await up(agent, bird)
    agent.bfd.sessions({})
    assert agent.bfd.statuses == {}
    await until(lambda: not agent.pid, "the process ends")
    agent.bfd.sessions(BOTH)
    await agent.up(*BOTH)
    assert agent.bfd.fault is None
    assert [call for call, _, _ in agent.calls] == ["up"] * 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to end"])
async def test_a_process_that_ends_is_started_again(agent: Agent, bird: Bird, number: int) -> None:
    """Nothing is known of the path meanwhile: no failure is reported."""
    await up(agent, bird)
    os.kill(agent.pid, number)
    await until(lambda: sum(call == "down" for call, _, _ in agent.calls) == len(BOTH), "reported down")
    assert all(failure.administrative for call, _, failure in agent.calls if failure is not None)
    await until(lambda: agent.pid, "started again")
    await agent.up(*BOTH)


async def test_a_process_that_was_stopped_blames_nobody(agent: Agent, bird: Bird, wire: Wire) -> None:
    """What came meanwhile waits in its sockets, and is read before deadlines are looked at; an order as well."""
    await up(agent, bird)
    patient = dict.fromkeys(BOTH, replace(FAST, multiplier=200))
    agent.bfd.sessions(patient)
    await until(lambda: all(row[4] == "10.000" for row in bird.sessions().values()), "BIRD has patience")
    for change in (patient, dict.fromkeys(BOTH, replace(FAST, multiplier=201))):
        os.kill(agent.pid, signal.SIGSTOP)
        agent.bfd.sessions(change)
        await asyncio.sleep(1)
        os.kill(agent.pid, signal.SIGCONT)
        await asyncio.sleep(0.5)
    assert fell(wire) == []
    assert all(status.missed > 0 for status in agent.bfd.statuses.values()), "they came late"


async def test_a_process_that_hangs_is_killed(agent: Agent, bird: Bird, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.routing.bfd.client.DEADLINE", 2.0)
    await up(agent, bird)
    hanging = agent.pid
    os.kill(hanging, signal.SIGSTOP)
    await until(lambda: agent.pid not in (0, hanging), "another one")
    await agent.up(*BOTH)


async def test_a_process_of_another_version_is_replaced(
    agent: Agent, bird: Bird, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    await up(agent, bird)
    await agent.kill()
    version = messages.VERSION + 1
    monkeypatch.setattr(messages, "VERSION", version)
    monkeypatch.setattr(client, "line", lambda said: messages.line(msgspec.structs.replace(said, version=version)))
    agent.begin()
    agent.start(BOTH)
    await until(lambda: not agent.pid, "the old one ends")
    assert {one.packet.state for one in wire.sent_by(OWN[4])[-2:]} == {State.ADMIN_DOWN}
    monkeypatch.undo()  # each that is started is of the other version
    await agent.up(*BOTH)


async def test_an_agent_that_wants_nothing_ends_what_the_one_before_left(agent: Agent, bird: Bird) -> None:
    await up(agent, bird)
    await agent.kill()
    agent.begin()
    agent.task = asyncio.create_task(agent.bfd.run())
    await asyncio.sleep(1)
    assert bird.state(4) == "Up", "it has not said yet what it wants"
    agent.bfd.sessions({})
    await until(lambda: not agent.pid, "the process ends")
    agent.bfd.sessions({})
    await asyncio.sleep(0.5)
    assert not agent.pid, "and none is started"


async def test_a_flood_takes_no_cpu_from_others(agent: Agent, bird: Bird, nodes: tuple[Netns, Netns]) -> None:
    """Packets from the link faster than they are read: the process is run before others no longer."""
    await up(agent, bird)
    pid = agent.pid
    assert os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
    words = ["nice", "-n", "-20", sys.executable, "-c", FLOOD, str(OWN[4]), str(PORT)]  # however busy the machine is
    flooding = subprocess.Popen(command(str(nodes[1].path), *words))
    try:
        await until(lambda: os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER, "ordinary")
    finally:
        flooding.kill()
        flooding.wait()
    await until(lambda: os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR, "before others again")
    await agent.up(*BOTH)
    assert agent.pid == pid


async def test_a_port_that_is_taken_is_said_and_taken_when_free(agent: Agent, bird: Bird) -> None:
    def taken() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((str(OWN[4]), PORT))
        return made

    other = in_netns(agent.netns, taken)
    bird.start()
    agent.start(BOTH)
    await agent.up(KEYS[6])
    fault = why_not_up(agent.bfd.statuses[KEYS[4]])
    assert fault is not None
    assert "UDP port 3784 of 172.30.0.11 is taken by another program" in fault.fault
    other.close()
    await agent.up(KEYS[4])


async def test_two_agents_share_no_process_and_the_newest_is_obeyed(agent: Agent, bird: Bird, tmp_path: Path) -> None:
    """A restart overlaps: the old agent's connection is closed, and both end with one process."""
    await up(agent, bird)
    pid = agent.pid
    second = Agent(agent.netns, agent.folder)
    second.start(BOTH)
    await second.up(*BOTH)
    await agent.kill()
    await second.up(*BOTH)
    assert second.pid == pid
    await second.kill()


async def test_where_the_process_cannot_start_the_reason_is_said(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    agent.folder = tmp_path / "file" / "bfd"
    agent.begin()
    agent.start(BOTH)
    await until(lambda: agent.bfd.fault is not None, "a fault")
    assert isinstance(agent.bfd, Bfd)
    assert agent.bfd.fault is not None
    assert "Not a directory" in agent.bfd.fault.fault


async def test_an_uninstall_ends_the_process_in_good_order(agent: Agent, bird: Bird, wire: Wire) -> None:
    """The peer hears AdminDown, which is no failure, and nothing runs any more when the call returns."""
    await up(agent, bird)
    await agent.kill()
    assert await client.end(agent.folder)
    assert agent.pid == 0
    assert set(fell(wire)) <= {State.ADMIN_DOWN, State.DOWN}
    assert wire.sent_by(OWN[4])[-1].packet.state is State.ADMIN_DOWN
    assert not await client.end(agent.folder), "a second run finds nothing to do"
