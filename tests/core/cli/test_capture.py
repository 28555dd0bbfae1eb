"""`airmesh bgp capture`: what a line has, and what a person is told of the capture itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network

from cli.reports.capture import SHOWN, SILENT, Followed, line
from proto.bgp_capture import BgpCapture, CapturedMessage, CapturedPrefixes, MessageFault


def message(number: int, missed: int = 0, **more: object) -> CapturedMessage:
    said = CapturedMessage(
        number=number,
        time_ns=0,
        peer="mesh/n2",
        direction="received",
        connection="outgoing",
        type="KEEPALIVE",
        octets=19,
        missed=missed,
    )
    for name, value in more.items():
        said = CapturedMessage(**{one: getattr(said, one) for one in said.__struct_fields__} | {name: value})
    return said


@dataclass
class Capture:
    """Of two nodes; the clock is by hand."""

    now: float = 0.0
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.followed = Followed(("n1", "n2"), 0.0)

    def take(self, node: str, *messages: CapturedMessage, peers: int = 1, missed: int = 0) -> list[str]:
        answer = BgpCapture(node=node, peers=peers, messages=messages, missed=missed)
        return list(self.followed.take(node, answer, self.now))


def test_it_has_begun_when_every_agent_captures() -> None:
    capture = Capture()
    assert capture.take("n1") == []
    assert not capture.followed.begun
    assert capture.take("n3") == [], "nobody asked it"
    assert capture.take("n2", message(1), message(2)) == []
    assert capture.followed.begun


def test_what_is_missing_is_reported_with_where_it_was_lost() -> None:
    capture = Capture()
    assert capture.take("n1", message(1), message(2, missed=3)) == [
        "3 messages of n1 found no room before the next one"
    ]
    assert capture.take("n1", message(5)) == ["2 messages of n1 were lost on the way"]
    assert capture.take("n1", missed=4) == ["4 messages of n1 found no room"]
    [again] = capture.take("n1", message(1))
    assert again.startswith("the agent of n1 has begun anew")
    assert capture.take("n2", message(1)) == [], "each node has its own numbers"


def test_who_is_silent_is_reported_once_and_when_all_are_it_is_over() -> None:
    capture = Capture(now=SILENT)
    assert capture.take("n1") == []
    capture.now += 1.0
    assert list(capture.followed.unheard(capture.now)) == ["the agent of n2 does not answer"]
    assert list(capture.followed.unheard(capture.now)) == []
    assert not capture.followed.silent(capture.now)
    assert capture.followed.silent(capture.now + SILENT)


def test_a_session_that_goes_is_reported_and_without_any_it_is_over() -> None:
    capture = Capture()
    assert capture.take("n1", peers=0) == ["n1 has no such session any more"]
    assert capture.take("n1", peers=0) == []
    assert not capture.followed.over
    capture.take("n2", peers=0)
    assert capture.followed.over


def test_a_line_has_the_first_prefixes_and_what_became_of_what_is_wrong() -> None:
    prefixes = tuple(ip_network(f"10.1.{number}.0/24") for number in range(SHOWN + 2))
    part = CapturedPrefixes(family=4, prefixes=prefixes, left_out=5, attributes=(("ORIGIN", "IGP"), ("MED", "7")))
    fault = MessageFault(about="AGGREGATOR", reason="it is short", treatment="attribute discard")
    words = " ".join(cell.text for cell in line("n1", message(1, type="UPDATE", reachable=(part,), faults=(fault,))))
    assert f"{prefixes[SHOWN - 1]} and 7 more ORIGIN IGP, MED 7 attribute discard: AGGREGATOR: it is short" in words
    assert str(prefixes[SHOWN]) not in words
    assert "n1 mesh/n2 ← UPDATE +10.1.0.0/24" in words
