"""Sessions with a real BIRD 2: both families, passwords, distance, numbers of four octets, restarts of both sides."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from services.routing.core.bgp.codec.errors import Cease
from services.routing.core.bgp.session.actions import DeferSelection, Established, Lost
from services.routing.core.bgp.session.restart import DropStale
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Family
from tests.netns.routing.bgp.speakers import OURS, OURS6, Bird, Inside, Report, announce, peer, up

pytestmark = pytest.mark.privileged
US = f"local as 65001; neighbor {OURS} as 64512;"
DIRECT = f"{US} direct; connect delay time 1; connect retry time 2; error wait time 1, 2;"
MAKE = Callable[..., Inside]


@pytest.mark.parametrize("v6", [False, True], ids=["over IPv4", "over IPv6"])
@pytest.mark.parametrize("password", ["", "s3cret of both"])
@pytest.mark.parametrize("hops", [None, 1], ids=["any distance", "one hop"])
def test_a_session_carries_both_families(speaker: MAKE, bird: Bird, v6: bool, password: str, hops: int | None) -> None:
    neighbour = OURS6 if v6 else OURS
    signed = f'password "{password}";' if password else ""
    secured = "ttl security on;" if hops else ""
    bird.configure(f"local as 65001; neighbor {neighbour} as 64512; direct; connect delay time 1; {signed} {secured}")
    bird.start()
    inside = speaker()
    announce(inside, "10.9.0.0/24", "fd00:9::/64")
    inside.call(inside.speaker.listen, [ip_address(neighbour)])
    inside.call(inside.speaker.follow, {"tor": peer(v6=v6, password=password or None, hops=hops)})
    inside.until(up, "no End-of-RIB of both families")
    assert inside.report.routes["tor"] == {"10.1.0.0/24", "10.2.0.0/16", "fd00:1::/64"}
    said = bird.until("show route protocol node", "10.9.0.0/24", "fd00:9::/64")
    assert "AS64512" in said
    state = inside.call(inside.speaker.states)["tor"]
    assert state.state is State.ESTABLISHED
    assert state.agreed is not None
    assert state.agreed.four_octets
    assert state.sent_messages >= 4


@pytest.mark.parametrize("side", ["outgoing", "incoming"])
def test_each_side_may_make_the_connection(speaker: MAKE, bird: Bird, side: str) -> None:
    bird.configure(DIRECT + ("passive on;" if side == "outgoing" else ""))
    bird.start()
    inside = speaker()
    if side == "incoming":
        inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.call(inside.speaker.follow, {"tor": peer(passive=side == "incoming")})
    inside.until(up)


def test_numbers_of_four_octets(speaker: MAKE, bird: Bird) -> None:
    bird.configure(f"local as 4200000001; neighbor {OURS} as 4200000002; direct;")
    bird.start()
    inside = speaker()
    announce(inside, "10.9.0.0/24", asn=4200000002)
    inside.call(inside.speaker.follow, {"tor": peer(local_asn=4200000002, peer_asn=4200000001)})
    inside.until(up)
    bird.until("show route protocol node", "AS4200000002")


def test_a_peer_of_two_octets(speaker: MAKE, bird: Bird) -> None:
    bird.configure(DIRECT + "enable as4 off;")
    bird.start()
    inside = speaker()
    inside.call(inside.speaker.follow, {"tor": peer()})
    inside.until(up)
    assert not inside.report.of(Established)[0].agreed.four_octets


def test_passwords_that_differ_never_meet(speaker: MAKE, bird: Bird) -> None:
    bird.configure(DIRECT + 'password "one";')
    bird.start()
    inside = speaker()
    inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.call(inside.speaker.follow, {"tor": peer(password="another")})
    inside.until(lambda _: inside.call(inside.speaker.states)["tor"].fault)
    fault = inside.call(inside.speaker.states)["tor"].fault
    assert fault is not None
    assert "password" in fault.remedy
    assert inside.report.of(Established) == []
    inside.call(inside.speaker.follow, {"tor": peer(password="one")})
    inside.until(up, "with the right password")


def test_a_password_that_the_kernel_refuses_is_said(speaker: MAKE) -> None:
    inside = speaker()
    inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.call(inside.speaker.follow, {"tor": peer(password="x" * 81)})
    inside.until(lambda _: inside.call(inside.speaker.states)["tor"].fault)
    fault = inside.call(inside.speaker.states)["tor"].fault
    assert fault is not None
    assert "81 octets" in str(fault)
    assert "x" * 81 not in str(fault)


def test_who_is_too_far_away_is_not_heard(speaker: MAKE, bird: Bird) -> None:
    """GTSM: BIRD sends with a TTL of 1 to a direct peer, as if it came from 255 hops away. Its SYN-ACK has 255, so that
    there may be a connection, but no OPEN comes by it.
    """
    bird.configure(DIRECT)
    bird.start()
    inside = speaker()
    inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.call(inside.speaker.follow, {"tor": peer(hops=1)})
    time.sleep(3)
    state = inside.call(inside.speaker.states)["tor"]
    assert state.state is not State.ESTABLISHED
    assert state.received == {}
    bird.kill()  # what this side says cannot reach it either: without its ACKs nothing more is sent
    bird.start()
    inside.call(inside.speaker.follow, {"tor": peer(hops=255)})
    inside.until(up, "255 hops")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda one: one.shut_down("tor", "maintenance, back at 6"), "Administrative shutdown"),
        (lambda one: one.reset("tor", text="new filters", after=30.0), "Administrative reset"),
        (lambda one: one.follow({}), "Peer de-configured"),
        (lambda one: one.follow({"tor": peer(hold_seconds=30)}), "configuration change"),
        (lambda one: one.refuse_prefixes("tor"), "number of prefixes"),
        (lambda one: one.reset("tor", Cease.OUT_OF_RESOURCES, after=30.0), "resources"),
    ],
    ids=["shutdown", "reset", "removed", "changed", "prefixes", "resources"],
)
def test_bird_shows_why_this_side_ended_the_session(
    speaker: MAKE, bird: Bird, act: Callable[[object], None], said: str
) -> None:
    bird.configure(DIRECT + "passive on;")
    bird.start()
    inside = speaker()
    inside.call(inside.speaker.follow, {"tor": peer()})
    inside.until(up)
    inside.call(act, inside.speaker)
    deadline = time.monotonic() + 20
    while said.lower() not in bird.log().lower():
        assert time.monotonic() < deadline, bird.log()[-3000:]
        time.sleep(0.1)
    if said == "Administrative shutdown":
        assert "maintenance, back at 6" in bird.log()


def test_this_side_shows_why_bird_ended_the_session(speaker: MAKE, bird: Bird) -> None:
    bird.configure(DIRECT)
    bird.start()
    inside = speaker()
    inside.call(inside.speaker.follow, {"tor": peer()})
    inside.until(up)
    bird.ctl('disable node "power works in row 7"')
    inside.until(lambda report: report.of(Lost))
    assert "power works in row 7" in inside.report.of(Lost)[0].reason.text
    bird.ctl("enable node")
    inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.until(lambda report: len(report.of(Established)) == 2)


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (f"local as 65009; neighbor {OURS} as 64512; direct; passive on;", (2, 2)),
        (f"local as 65001; neighbor {OURS} as 64999; direct; passive on;", (2, 2)),
    ],
    ids=["this side refuses", "BIRD refuses"],
)
def test_a_wrong_number_is_said_with_its_remedy(
    speaker: MAKE, bird: Bird, session: str, expected: tuple[int, int]
) -> None:
    bird.configure(session)
    bird.start()
    inside = speaker()
    inside.call(inside.speaker.follow, {"tor": peer()})

    def refused(_: Report) -> bool:
        fault = inside.call(inside.speaker.states)["tor"].fault
        return fault is not None and (fault.code, fault.subcode) == expected and "asNumber" in fault.remedy

    inside.until(refused)
    assert inside.report.of(Established) == []


@pytest.mark.parametrize("graceful", [True, False], ids=["keeps its routes in the kernel", "only helps others"])
def test_bird_restarts(speaker: MAKE, bird: Bird, graceful: bool) -> None:
    """Killed, so that the kernel closes its connections: with graceful restart its routes stay until End-of-RIB."""
    bird.configure(DIRECT + f"graceful restart {'on' if graceful else 'aware'};")
    bird.start()
    inside = speaker()
    announce(inside)
    inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.call(inside.speaker.follow, {"tor": peer()})
    inside.until(up)
    bird.kill()
    inside.until(lambda report: report.of(Lost))
    (lost,) = inside.report.of(Lost)
    assert lost.kept == (set(Family) if graceful else set())
    inside.report.events.clear()
    bird.start(*(["-R"] if graceful else []))
    inside.until(up)
    dropped = [family for one in inside.report.of(DropStale) for family in one.families]
    assert set(dropped) == (set(Family) if graceful else set())
    assert inside.report.routes["tor"] == {"10.1.0.0/24", "10.2.0.0/16", "fd00:1::/64"}


@pytest.mark.parametrize("planned", [True, False], ids=["planned", "by a fall"])
def test_this_speaker_restarts(speaker: MAKE, bird: Bird, planned: bool) -> None:
    """BIRD keeps the routes as stale ones, and drops those that this speaker does not announce again."""
    bird.configure(DIRECT + "graceful restart on;")
    bird.start()
    inside = speaker()
    announce(inside, "10.9.0.0/24", "10.8.0.0/24", "fd00:9::/64")
    inside.call(inside.speaker.follow, {"tor": peer()})
    bird.until("show route protocol node", "10.8.0.0/24", "fd00:9::/64")
    if planned:
        inside.call(inside.speaker.suspend)
    inside.close()
    bird.until("show protocols all node", "graceful restart")
    assert "10.8.0.0/24" in bird.ctl("show route protocol node")
    assert "Received: " not in bird.log(), "no NOTIFICATION"
    again = speaker(restarting_until=time.monotonic() + 60)
    announce(again, "10.9.0.0/24", "fd00:9::/64")
    again.call(again.speaker.follow, {"tor": peer()})
    again.until(up)
    assert again.report.of(DeferSelection)
    deadline = time.monotonic() + 20
    while "10.8.0.0/24" in (said := bird.ctl("show route protocol node")):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    assert "10.9.0.0/24" in said


def test_the_loop_is_held_for_longer_than_the_hold_time(speaker: MAKE, bird: Bird) -> None:
    """Hold time 3 s, loop held for 4 s: the thread's KEEPALIVEs keep BIRD's side up, what has come is read first."""
    bird.configure(DIRECT + "hold time 3; keepalive time 1;")
    bird.start()
    inside = speaker()
    inside.call(inside.speaker.follow, {"tor": peer(hold_seconds=3)})
    inside.until(up)
    inside.loop.call_soon_threadsafe(time.sleep, 4.0)
    time.sleep(4.5)
    assert inside.report.of(Lost) == []
    assert "Established" in bird.ctl("show protocols node")
    inside.loop.call_soon_threadsafe(count_for, 4.0)
    time.sleep(4.5)
    assert inside.report.of(Lost) == []
    assert "Established" in bird.ctl("show protocols node")


def count_for(seconds: float) -> None:
    """Hold the loop and, most of the time, Python's lock."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
