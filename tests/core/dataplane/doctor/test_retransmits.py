"""Loss on the link of two nodes, by what sockets had to send again between two looks."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from services.dataplane.core.doctor.retransmits import LOSES, Sent, Sockets, by_node, check

WEB, DB, OUTSIDE = ip_address("10.244.0.70"), ip_address("10.244.0.130"), ip_address("192.0.2.1")
NODES = {WEB: "n2", DB: "n3"}


def sent(segments: int, retransmitted: int = 0) -> Sent:
    return Sent(segments=segments, retransmitted=retransmitted)


def test_sockets_count_from_the_first_look_on_and_by_the_node_of_their_peer() -> None:
    before: Sockets = {1: (WEB, sent(1000, 900)), 2: (DB, sent(5)), 3: (OUTSIDE, sent(0)), 4: (WEB, sent(7, 7))}
    now: Sockets = {
        1: (WEB, sent(1100, 910)),
        2: (DB, sent(5)),
        3: (OUTSIDE, sent(800, 800)),
        5: (WEB, sent(500, 500)),
        6: (WEB, sent(50, 1)),
    }
    assert by_node(before, now, NODES) == {"n2": sent(100, 10)}
    assert by_node({**before, 6: (WEB, sent(0))}, now, NODES) == {"n2": sent(150, 11)}


@pytest.mark.parametrize(
    ("by", "pairs"),
    [
        ({"n2": sent(100, 10)}, ["Pair n1 n2"]),
        ({"n2": sent(100, 10), "n3": sent(100, 1)}, ["Pair n1 n2"]),
        ({"n2": sent(100, 10), "n3": sent(100, 9)}, []),
        ({"n2": sent(100, 10), "n3": sent(100, 9), "n4": sent(200)}, ["Pair n1 n2", "Pair n1 n3"]),
        ({"n2": sent(100, 10), "n3": sent(40, 4)}, ["Pair n1 n2"]),
        ({"n2": sent(49, 40)}, []),
        ({"n2": sent(60, 4)}, []),
        ({"n2": sent(1000, 29)}, []),
        ({"n1": sent(100, 50)}, []),
        ({}, []),
    ],
)
def test_a_pair_loses(by: dict[str, Sent], pairs: list[str]) -> None:
    found = list(check("n1", by, 2.5))
    assert [one.about for one in found] == pairs
    for one in found:
        assert one.code == LOSES
        assert "of 100" not in one.observed[0].text
        assert "again" in one.observed[0].text
