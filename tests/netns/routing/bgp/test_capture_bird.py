"""What is captured of a session with a real BIRD, signed by TCP-MD5: all that both say, and never the password."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from proto.bgp_capture import BgpCapture, BgpCaptureRequest, CapturedMessage
from proto.codec import encode
from services.routing.bgp import answers
from services.routing.core.bgp.values import Attributes, Origin
from tests.netns.routing.bgp.speakers import PATIENCE, THEIRS, Bird, Inside, Pair, peer
from tests.netns.routing.bgp.test_router import OWN, SESSION, Node, node

pytestmark = pytest.mark.privileged
PASSWORD = "a-secret-of-both"


class Captured:
    """Asks again and again, as the command does."""

    def __init__(self, inside: Inside, of: Node) -> None:
        self._inside = inside
        self._node = of
        self.messages: list[CapturedMessage] = []
        self.octets = b""
        self.take()

    def take(self) -> None:
        asked = BgpCaptureRequest(capture="a", peer=THEIRS)
        said = self._inside.call(answers.capture, asked, "n1", self._node.router)
        assert isinstance(said, BgpCapture)
        self.messages += said.messages
        self.octets += encode(said)

    def until(self, holds: Callable[[list[CapturedMessage]], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds(self.messages):
            assert time.monotonic() < deadline, self.messages
            self._node.step()
            self.take()
            time.sleep(0.05)


def prefixes(messages: list[CapturedMessage], direction: str, which: str) -> set[str]:
    parts = [part for one in messages if one.direction == direction for part in getattr(one, which)]
    return {str(prefix) for part in parts for prefix in part.prefixes}


def ends(messages: list[CapturedMessage]) -> set[tuple[str, int]]:
    return {(one.direction, one.family) for one in messages if one.end_of_rib}


def test_all_that_both_sides_say_and_no_password(speaker: Callable[..., Inside], pair: Pair, bird: Bird) -> None:
    bird.configure(SESSION + f' password "{PASSWORD}";')
    inside = speaker()
    with node(inside, pair) as one:
        one.router.announce(OWN)
        one.follow(peer(f"tor/{THEIRS}", password=PASSWORD))
        captured = Captured(inside, one)
        bird.start()
        captured.until(lambda said: ends(said) == {(way, family) for way in ("sent", "received") for family in (4, 6)})
        found = captured.messages
        assert [one.number for one in found] == list(range(1, len(found) + 1))
        for way in ("sent", "received"):
            mine = [one for one in found if one.direction == way]
            assert [one.type for one in mine[:2]] == ["OPEN", "KEEPALIVE"]
            assert mine[0].open is not None
            assert mine[0].open.asn == (64512 if way == "sent" else 65001)
        assert prefixes(found, "received", "reachable") == {"10.1.0.0/24", "10.2.0.0/16", "fd00:1::/64"}
        assert prefixes(found, "sent", "reachable") == {str(network) for network in OWN}
        assert not any(one.faults for one in found)

        bird.configure(SESSION + f' password "{PASSWORD}";', routes="route 10.1.0.0/24 blackhole;")
        captured.until(lambda said: prefixes(said, "received", "withdrawn") == {"10.2.0.0/16"})
        one.router.announce({ip_network("10.9.0.0/26"): Attributes(origin=Origin.IGP)})
        captured.until(lambda said: prefixes(said, "sent", "withdrawn") == {"fd00:9::/122"})
        one.follow()
        captured.until(lambda said: any(one.notification is not None for one in said))
        [last] = [one for one in captured.messages if one.notification is not None]
        assert (last.direction, last.type) == ("sent", "NOTIFICATION")
        assert "Peer De-configured" in (last.notification.reason if last.notification is not None else "")
    assert PASSWORD.encode() not in captured.octets
