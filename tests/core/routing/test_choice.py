"""Which of the models asked for a pair takes, by what was measured of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from msgspec import structs

from kit.model_settings import model_settings
from kit.models import HOST_GW, IPIP, VXLAN
from kit.tunnels import Tunnel, next_hop
from proto.objects import FelixConfiguration
from services.routing.core.choice import MOST_STABLE, STABLE, Choice, choose
from services.routing.core.evidence import Evidence, Search, Verdict, Way
from services.routing.core.fib import SeenDevice
from services.routing.core.models import MODELS
from services.routing.core.models.contract import NodeContext, Pair, Path
from services.routing.core.pairs import PairKey, targets
from services.routing.core.steps import since_when, states, steps
from tests.core.routing.test_plan import FAB0, N2, node

ALL = (HOST_GW.name, IPIP.name, VXLAN.name)
OWN = ip_address("172.30.0.11"), ip_address("fd00:172:30::11")
FAR = node("n3", "198.51.100.3 fd00:99::3", "10.244.0.128/26")
NOW = 10_000.0


def device(name: str, index: int, tunnel: Tunnel, mtu: int) -> SeenDevice:
    return SeenDevice(name=name, index=index, kind="vxlan", up=True, mtu=mtu, group=0x6174, alias="", tunnel=tunnel)


DEVICES = {
    ("vxlan", 4): device("am-vxlan", 11, Tunnel(model="vxlan", local=OWN[0], port=4789, vni=4096), 1450),
    ("vxlan", 6): device("am-vxlan6", 12, Tunnel(model="vxlan", local=OWN[1], port=4789, vni=4096), 1430),
    ("ipip", 4): device("am-ipip", 13, Tunnel(model="ipip", local=OWN[0]), 1480),
}
CONTEXT = NodeContext(links=(FAB0,), underlay=OWN, devices=DEVICES)


@dataclass
class Measured:
    """Evidence by model, in words: ``host-gw`` works, has worked for a while, fails, or is not known."""

    words: dict[str, str]

    def of(self, pair: Pair) -> dict[Way, Evidence]:
        found = {}
        for name, word in self.words.items():
            path = MODELS[name].path(pair)
            if isinstance(path, Path) and path.way is not None:
                found[path.way] = evidence(word, path.mtu)
        return found


def evidence(word: str, most: int = 1500) -> Evidence:
    whole = Search(most=most, good=most)
    return {
        "works": Evidence(verdict=Verdict.WORKS, since=NOW - 1, answered=3, search=whole, heard=NOW - 1),
        "worked": Evidence(verdict=Verdict.WORKS, since=NOW - 99, answered=3, search=whole, heard=NOW - 10),
        "stable": Evidence(verdict=Verdict.WORKS, since=NOW - STABLE, answered=30, search=whole, heard=NOW - 1),
        "silent": Evidence(verdict=Verdict.WORKS, since=NOW - 99, lost=2, search=whole, heard=NOW - 20),
        "flaps": Evidence(verdict=Verdict.WORKS, since=NOW - STABLE, answered=30, search=whole, failures=1),
        "fails": Evidence(verdict=Verdict.FAILS, since=NOW - 9, lost=9, search=whole, failures=1),
        "?": Evidence(),
    }[word]


def chosen(asked: str, current: str = "", measured: str = "", **more: object) -> Choice:
    """``measured``: ``host-gw=works vxlan=fails``."""
    words = dict(part.split("=") for part in measured.split())
    peer = structs.replace(more.get("peer", FAR), models=more.get("models", ALL))  # type: ignore[type-var]
    pair = Pair(peer=peer, family=int(str(more.get("family", 4))), own=CONTEXT)  # type: ignore[arg-type]
    return choose(pair, tuple(asked.split()), current, Measured(words).of(pair), NOW)


def model(choice: Choice) -> str:
    return choice.path.model if choice.path is not None else ""


@pytest.mark.parametrize(
    ("asked", "current", "measured", "taken", "pending"),
    [
        pytest.param("vxlan", "", "", "vxlan", "", id="nothing-leads-there"),
        pytest.param("vxlan", "", "vxlan=fails", "vxlan", "", id="nothing-leads-there-and-it-fails"),
        pytest.param("vxlan", "ipip", "", "ipip", "vxlan", id="not-proved"),
        pytest.param("vxlan", "ipip", "vxlan=works", "vxlan", "", id="proved"),
        pytest.param("vxlan", "ipip", "vxlan=fails", "ipip", "vxlan", id="it-fails"),
        pytest.param("vxlan", "ipip", "ipip=fails vxlan=?", "ipip", "vxlan", id="both-unproved"),
        pytest.param("vxlan", "vxlan", "vxlan=fails", "vxlan", "", id="always-is-never-given-up"),
        pytest.param("ipip vxlan", "", "", "ipip", "", id="the-first-that-is-not-known-to-fail"),
        pytest.param("ipip vxlan", "", "ipip=fails", "vxlan", "", id="the-first-fails"),
        pytest.param("ipip vxlan", "ipip", "ipip=fails vxlan=works", "vxlan", "", id="given-up"),
        pytest.param("ipip vxlan", "ipip", "ipip=fails vxlan=?", "ipip", "", id="nothing-better-is-known"),
        pytest.param("ipip vxlan", "ipip", "ipip=fails vxlan=worked", "ipip", "", id="the-other-agent-is-away"),
        pytest.param("ipip vxlan", "vxlan", "ipip=works vxlan=works", "vxlan", "", id="not-yet-stable"),
        pytest.param("ipip vxlan", "vxlan", "ipip=silent vxlan=works", "vxlan", "", id="it-worked-and-is-silent-now"),
        pytest.param("ipip vxlan", "vxlan", "ipip=stable vxlan=works", "ipip", "", id="stable"),
        pytest.param("ipip vxlan", "vxlan", "ipip=flaps vxlan=works", "vxlan", "", id="it-came-and-went"),
        pytest.param("ipip vxlan", "ipip", "ipip=works vxlan=stable", "ipip", "", id="the-first-stays"),
        pytest.param("vxlan", "gone", "", "vxlan", "", id="a-model-that-there-is-not"),
        pytest.param("", "ipip", "", "ipip", "", id="what-is-asked-is-not-known"),
    ],
)
def test_what_a_pair_takes(asked: str, current: str, measured: str, taken: str, pending: str) -> None:
    found = chosen(asked, current, measured)
    assert (model(found), found.pending) == (taken, pending)
    assert found.why
    assert (found.state == "pending") is bool(pending)


def test_what_the_other_node_cannot_receive_is_not_taken_and_the_old_way_stays() -> None:
    found = chosen("vxlan", "ipip", models=("host-gw", "ipip"))
    assert (model(found), found.pending, found.state) == ("ipip", "vxlan", "pending")
    assert "cannot do vxlan" in found.faults[0].fault
    assert found.faults[0].after > 0, "while nodes learn of each other it is none"
    without = chosen("vxlan", models=("host-gw",))
    assert (without.path, without.state) == (None, "none")


def test_a_way_that_leads_there_needs_no_word_of_the_other_node() -> None:
    """Its agent is restarted: it says for a moment that it can do nothing."""
    assert model(chosen("vxlan", "vxlan", models=("host-gw",))) == "vxlan"
    assert model(chosen("host-gw vxlan", "vxlan", models=("host-gw",))) == "vxlan"


def test_a_pair_takes_the_largest_packet_that_was_answered() -> None:
    pair = Pair(peer=structs.replace(FAR, models=ALL), family=4, own=CONTEXT)
    path = MODELS["vxlan"].path(pair)
    assert isinstance(path, Path)
    assert path.way is not None
    narrow = replace(evidence("works"), search=Search(most=1450, good=1392, bad=1400))
    found = choose(pair, ("vxlan",), "vxlan", {path.way: narrow}, NOW)
    assert found.path is not None
    assert (found.path.mtu, found.path.link_mtu) == (1392, 1450)


@pytest.mark.parametrize(
    ("family", "underlay", "via", "link"),
    [
        (4, "198.51.100.3 fd00:99::3", "198.51.100.3", 11),
        (6, "198.51.100.3 fd00:99::3", "fe80::5efe:c633:6403", 11),
        (4, "fd00:99::3", str(next_hop(ip_address("fd00:99::3"), 4)), 12),
        (6, "fd00:99::3", str(next_hop(ip_address("fd00:99::3"), 6)), 12),
    ],
)
def test_the_next_hop_stands_for_the_other_node(family: int, underlay: str, via: str, link: int) -> None:
    found = chosen("vxlan", peer=node("n3", underlay), family=family).path
    assert found is not None
    assert (found.via, found.link, found.onlink, found.source) == (ip_address(via), link, True, OWN[family == 6])
    assert (found.local, found.remote) == (OWN[link == 12], ip_address(underlay.split(maxsplit=1)[0]))


@pytest.mark.parametrize(
    ("asked", "peer", "family", "sentence"),
    [
        ("ipip", FAR, 6, "ipip carries IPv4 alone"),
        ("ipip", node("n3", "fd00:99::3"), 4, "no addresses of one family that ipip goes over"),
        ("vxlan", node("n3", ""), 4, "no addresses of one family"),
        ("vxlan", node("n3", "172.30.0.11"), 4, "says it has 172.30.0.11, which is this node's own"),
        ("vxlan", structs.replace(FAR, mtu=1300), 6, "leaves 1250 bytes of an uplink's MTU, and IPv6 needs 1280"),
    ],
)
def test_what_cannot_be_is_one_sentence(asked: str, peer: object, family: int, sentence: str) -> None:
    found = chosen(asked, peer=peer, family=family)
    assert found.path is None
    assert [sentence in fault.fault for fault in found.faults] == [True]
    assert found.faults[0].remedy


def test_a_device_that_is_not_there_is_waited_for() -> None:
    bare = Pair(peer=structs.replace(N2, models=ALL), family=4, own=replace(CONTEXT, devices={}))
    found = choose(bare, ("vxlan",), "host-gw", {}, NOW)
    assert (model(found), found.pending) == ("host-gw", "vxlan")
    assert "am-vxlan of vxlan is not there" in found.why


def test_a_person_s_mtu_counts() -> None:
    settings = model_settings([FelixConfiguration(name="default", vxlan_mtu=1400)])
    device = MODELS["vxlan"].device(replace(CONTEXT, settings=settings), 4)
    assert device is not None
    assert getattr(device, "mtu", 0) == 1400


def test_a_flapping_way_has_to_work_for_longer_each_time() -> None:
    pair = Pair(peer=structs.replace(FAR, models=ALL), family=4, own=CONTEXT)
    path = MODELS["ipip"].path(pair)
    assert isinstance(path, Path)
    assert path.way is not None
    waited = []
    for failures in range(12):
        for seconds in range(0, 4000, 10):
            known = replace(evidence("works"), failures=failures, since=NOW - seconds)
            if model(choose(pair, ("ipip", "vxlan"), "vxlan", {path.way: known}, NOW)) == "ipip":
                waited.append(float(seconds))
                break
    assert waited[:3] == [STABLE, 2 * STABLE, 4 * STABLE]
    assert set(waited[6:]) == {MOST_STABLE}


# --- what is measured, and what is said of it ---


def key(asked: str) -> PairKey:
    return PairKey("n3", 4, tuple(asked.split()))


@pytest.mark.parametrize(
    ("asked", "current", "measured", "ways"),
    [
        ("host-gw", "", "", {}),
        ("host-gw", "vxlan", "", {"host-gw": True, "vxlan": True}),
        ("vxlan", "vxlan", "", {"vxlan": False}),
        ("vxlan", "ipip", "", {"vxlan": True, "ipip": True}),
        ("host-gw vxlan", "host-gw", "", {"host-gw": True, "vxlan": False}),
        ("host-gw vxlan", "host-gw", "host-gw=fails", {"host-gw": True, "vxlan": True}),
    ],
)
def test_what_is_measured_and_what_is_soon(asked: str, current: str, measured: str, ways: dict[str, bool]) -> None:
    found = targets({key(asked): chosen(asked, current, measured, peer=N2)})
    assert {way.model: target.soon for way, target in found.items()} == ways


def said(asked: str, current: str, measured: str, **more: object) -> list[str]:
    choice = replace(chosen(asked, current, measured, **more), before=current)
    pair = Pair(peer=structs.replace(FAR, models=ALL), family=4, own=CONTEXT)
    words = dict(part.split("=") for part in measured.split())
    return [f"{one.step} {one.model}" for one in steps("n1", {key(asked): choice}, Measured(words).of(pair))]


@pytest.mark.parametrize(
    ("asked", "current", "measured", "steps_said"),
    [
        ("vxlan", "", "", ["taken vxlan"]),
        ("vxlan", "ipip", "", ["laid vxlan"]),
        ("vxlan", "ipip", "vxlan=works", ["proved vxlan", "taken vxlan"]),
        ("vxlan", "vxlan", "vxlan=works", []),
        ("ipip vxlan", "ipip", "ipip=fails vxlan=works", ["given-up ipip", "proved vxlan", "taken vxlan"]),
    ],
)
def test_each_step_is_said(asked: str, current: str, measured: str, steps_said: list[str]) -> None:
    assert said(asked, current, measured) == steps_said


def test_what_waits_for_the_other_node_is_said() -> None:
    assert said("vxlan", "ipip", "", models=("host-gw",)) == ["waits vxlan"]


def test_how_a_pair_is_when_somebody_asks() -> None:
    pair = Pair(peer=structs.replace(FAR, models=ALL), family=4, own=CONTEXT)
    known = Measured({"ipip": "fails", "vxlan": "works"}).of(pair)
    known = {way: one.tried(1_700_000_000, 64).tried(1_700_000_001, 1450) for way, one in known.items()}
    choice = choose(pair, ("ipip", "vxlan"), "vxlan", known, NOW)
    (state,) = states({key("ipip vxlan"): choice}, known, {key("ipip vxlan"): ("vxlan", 77)})
    assert (state.peer, state.family, state.model, state.state, state.since) == ("n3", 4, "vxlan", "given-up", 77)
    assert (state.device, state.mtu, state.via) == ("am-vxlan", 1450, ip_address("198.51.100.3"))
    assert [(one.model, one.at) for one in state.given_up] == [("ipip", 1_700_000_000)]
    assert "were not answered" in state.given_up[0].why
    assert {(one.model, one.what, one.answered) for one in state.measured} == {
        ("ipip", "small", False),
        ("ipip", "largest", True),
        ("vxlan", "small", True),
        ("vxlan", "largest", True),
    }


def test_since_when_a_pair_takes_what_it_takes() -> None:
    pairs = {key("vxlan"): replace(chosen("vxlan", "vxlan"), before="vxlan")}
    assert since_when(pairs, {}, 500, began=False) == {key("vxlan"): ("vxlan", 0)}, "since before the agent began"
    assert since_when(pairs, {key("vxlan"): ("ipip", 3)}, 500, began=True) == {key("vxlan"): ("vxlan", 500)}
    assert since_when(pairs, {key("vxlan"): ("vxlan", 3)}, 500, began=True) == {key("vxlan"): ("vxlan", 3)}
