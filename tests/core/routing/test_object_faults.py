"""What routing tells of the objects that ask for what it cannot do."""

from __future__ import annotations

from itertools import permutations

from proto.events import ObjectFault
from services.cluster.core.object_faults import kind_named
from services.routing.core.faults import Fault
from services.routing.core.object_faults import PEERING, REASON, of_objects
from services.routing.object_faults import AGAIN, EVERY, ObjectFaults

POOL = ("IPPool", "default")
FELIX = ("FelixConfiguration", "default")
FAULTS = (
    Fault("node n3 cannot do ipip", "ask for vxlan", of_others=True, about=POOL),
    Fault("node n2 cannot do ipip", "ask for vxlan", of_others=True, about=POOL),
    Fault("UDP port 4789 is another device's", "choose another", about=FELIX),
    Fault("this node has no interface eth9", "correct AIRMESH_UPLINKS"),
)


def test_each_object_is_reported_once_whatever_the_order() -> None:
    for order in permutations(FAULTS):
        felix, pool = of_objects(order, "n1")
        assert (pool.kind, pool.name, pool.group, pool.reason) == (*POOL, "crd.projectcalico.org", REASON)
        assert pool.fault == "on node n1, node n2 cannot do ipip (and 1 more of the sort)"
        assert pool.remedy == "ask for vxlan"
        assert felix.fault == "on node n1, UDP port 4789 is another device's"


def test_what_bgp_s_objects_ask_for_has_a_reason_of_its_own() -> None:
    about = (("BGPPeer", "tor-a"), ("BGPConfiguration", "default"), ("Node", "n1"))
    found = of_objects([Fault("cannot be", "mend it", about=one) for one in about], "n1")
    assert [(one.kind, one.group, one.reason) for one in found] == [
        ("BGPConfiguration", "crd.projectcalico.org", PEERING),
        ("BGPPeer", "crd.projectcalico.org", PEERING),
        ("Node", "", PEERING),
    ]
    assert all(kind_named(one) is not None for one in found), "cluster knows where to write it"


def test_it_is_said_again_while_it_lasts_and_when_it_returns() -> None:
    """An event may be lost, and Kubernetes forgets it: at the first pass, then each ten minutes."""
    sent: list[ObjectFault] = []
    reporter = ObjectFaults("n1", sent.append)
    for now in range(0, int(AGAIN) + 2, 5):
        reporter.report(FAULTS[:1], float(now))
    assert len(sent) == 2
    reporter.report((), AGAIN + 5)
    reporter.report(FAULTS[:1], AGAIN + 6)
    assert len(sent) == 2, f"not within {EVERY} s"
    reporter.report(FAULTS[:1], AGAIN + 5 + EVERY)
    assert len(sent) == 3


def test_who_has_no_key_says_nothing() -> None:
    sent: list[ObjectFault] = []
    ObjectFaults("", sent.append).report(FAULTS, 0.0)
    assert sent == []
