"""Sessions with a real FRR and a real ExaBGP: both families, passwords, distance, and what each shows of an end."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from services.routing.core.bgp.session.actions import Established, Lost
from services.routing.core.bgp.values import Family
from tests.netns.routing.bgp.speakers import OURS, ExaBgp, Frr, Inside, announce, peer, up

pytestmark = pytest.mark.privileged
MAKE = Callable[..., Inside]


@pytest.mark.parametrize(
    ("lines", "more"),
    [
        ("", {}),
        (f"neighbor {OURS} password s3cret", {"password": "s3cret"}),
        (f"neighbor {OURS} ttl-security hops 1", {"hops": 1}),
        ("bgp graceful-restart", {}),
        (f"neighbor {OURS} dont-capability-negotiate", {"families": frozenset({Family.IPV4})}),
    ],
    ids=["plain", "password", "one hop", "graceful restart", "no capabilities"],
)
def test_frr(speaker: MAKE, frr: Frr, lines: str, more: dict[str, Any]) -> None:
    frr.start(f"neighbor {OURS} remote-as 64512\nneighbor {OURS} timers connect 2\n{lines}")
    inside = speaker()
    announce(inside, "10.9.0.0/24", "fd00:9::/64")
    inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.call(inside.speaker.follow, {"tor": peer(**more)})
    inside.until(lambda report: report.of(Established), "no session")
    inside.until(lambda report: "10.1.0.0/24" in report.routes["tor"])
    frr.until("show bgp ipv4 unicast", "10.9.0.0/24")
    if "families" not in more:
        inside.until(lambda report: "fd00:1::/64" in report.routes["tor"])
        frr.until("show bgp ipv6 unicast", "fd00:9::/64")
    inside.call(inside.speaker.shut_down, "tor", "works in row 7")
    frr.until(f"show bgp neighbors {OURS}", "Shutdown")


def test_frr_says_why(speaker: MAKE, frr: Frr) -> None:
    frr.start(f"neighbor {OURS} remote-as 64999\nneighbor {OURS} timers connect 2")
    inside = speaker()
    inside.call(inside.speaker.follow, {"tor": peer()})

    def refused(_: object) -> bool:
        fault = inside.call(inside.speaker.states)["tor"].fault
        return fault is not None and (fault.code, fault.subcode) == (2, 2) and "asNumber" in fault.remedy

    inside.until(refused)


@pytest.mark.parametrize(
    ("lines", "more"),
    [("", {}), ('md5-password "s3cret";', {"password": "s3cret"}), ("hold-time 9;", {"hold_seconds": 30})],
    ids=["plain", "password", "hold time"],
)
def test_exabgp(speaker: MAKE, exabgp: ExaBgp, lines: str, more: dict[str, Any]) -> None:
    exabgp.start(
        f"""{lines} family {{ ipv4 unicast; ipv6 unicast; }}
        static {{ route 10.1.0.0/24 next-hop self; route 10.2.0.0/16 next-hop self; }}"""
    )
    inside = speaker()
    announce(inside, "10.9.0.0/24", "fd00:9::/64")
    inside.call(inside.speaker.listen, [ip_address(OURS)])
    inside.call(inside.speaker.follow, {"tor": peer(**more)})
    inside.until(up, "no End-of-RIB of both families")
    assert inside.report.routes["tor"] == {"10.1.0.0/24", "10.2.0.0/16"}
    inside.until(lambda _: "10.9.0.0/24" in exabgp.heard() and "fd00:9::/64" in exabgp.heard())
    if "hold_seconds" in more:
        assert inside.call(inside.speaker.states)["tor"].hold_seconds == 9
    inside.call(inside.speaker.shut_down, "tor", "works in row 7")
    inside.until(lambda report: report.of(Lost))
    inside.until(lambda _: '"state": "down"' in exabgp.heard())
