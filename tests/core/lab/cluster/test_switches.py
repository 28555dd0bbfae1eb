"""What a top-of-rack switch is configured with and says of itself, and how a person asks for its faults."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from lab.__main__ import parser
from lab.cluster import bird, frr, switches
from lab.cluster.record import Record, require, write_record
from lab.cluster.sessions import Bfd, Sessions
from lab.paths import NodePaths, Settings, paths
from lab.topology import NODE_ASN, Fabric, LabError, SwitchDaemon, plan

LAB = plan("air", 3, Fabric.TOR)
NODE = NodePaths(state=Path("/state"), run=Path("/run/lab"))
VENDORS = pytest.mark.parametrize("daemon", list(SwitchDaemon))


def text_of(
    daemon: SwitchDaemon, switch: str, passwords: Mapping[str, str] | None = None, bfd: Bfd = Bfd.GRACEFUL
) -> str:
    offered = Sessions(bfd=bfd, passwords=passwords or {})
    return "".join(switches.VENDORS[daemon].files(LAB, LAB.switch(switch), offered).values())


@VENDORS
@pytest.mark.parametrize("switch", ["tor-a", "tor-b"])
def test_a_switch_has_sessions_with_both_ends_of_each_node_and_with_the_other_switch(
    daemon: SwitchDaemon, switch: str
) -> None:
    text, one = text_of(daemon, switch), LAB.switch(switch)
    neighbors = re.findall(r"neighbor (\S+) (?:as|remote-as) (\d+)", text)
    expected = [(str(LAB.other_switch(one).link4), str(LAB.other_switch(one).asn))]
    expected += [(str(port.remote(v)), str(NODE_ASN)) for port in one.ports if port.asn for v in (4, 6)]
    assert neighbors == expected
    assert str(one.address4) in text


@VENDORS
def test_each_site_of_origin_is_one_nodes_alone_and_both_switches_have_the_same(daemon: SwitchDaemon) -> None:
    for port_a, port_b in zip(LAB.switches[0].ports, LAB.switches[1].ports, strict=True):
        assert (port_a.host, port_a.site) == (port_b.host, port_b.site)
    assert len({port.site for port in LAB.switches[0].ports}) == len(LAB.switches[0].ports)
    pattern = r"\(ro, \d+, (\d+)\)" if daemon is SwitchDaemon.BIRD else r"soo \d+:(\d+)"
    assert set(re.findall(pattern, text_of(daemon, "tor-a"))) == {"11", "12", "13"}


@VENDORS
def test_a_password_is_of_its_host_alone(daemon: SwitchDaemon) -> None:
    passwords = re.findall(r"password \S+", text_of(daemon, "tor-a", {"n2": "rack-7"}))
    assert len(passwords) == 2, "one a family"
    assert all("rack-7" in one for one in passwords)
    assert "password" not in text_of(daemon, "tor-a")


@VENDORS
@pytest.mark.parametrize("password", ['a"b c', "a\nprotocol x y", "pâté x"])
def test_a_password_that_would_end_its_word_is_refused(daemon: SwitchDaemon, password: str) -> None:
    with pytest.raises(LabError, match="password: use printable ASCII"):
        text_of(daemon, "tor-a", {"n1": password})


@VENDORS
def test_bfd_is_asked_for_of_nodes_as_wanted_and_always_between_the_switches(daemon: SwitchDaemon) -> None:
    texts = {bfd: text_of(daemon, "tor-a", bfd=bfd) for bfd in Bfd}
    assert len(set(texts.values())) == 3
    on = "bfd on;" if daemon is SwitchDaemon.BIRD else "bfd profile fabric"
    assert texts[Bfd.OFF].count(on) == 1
    assert texts[Bfd.ON].count(on) == 1 + 2 * len(LAB.nodes)


@VENDORS
def test_a_daemon_that_starts_again_keeps_what_the_kernel_has(daemon: SwitchDaemon) -> None:
    vendor = switches.VENDORS[daemon]
    first, again = (vendor.processes(NODE, recover=recover) for recover in (False, True))
    assert list(first) == list(again)
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"bird" if daemon is SwitchDaemon.BIRD else "zebra"}
    assert all(str(vendor.socket(NODE, name)).startswith("/run/lab/") for name in first)


def test_sessions_are_read_from_what_bird_prints() -> None:
    shown = """BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     04:47:17.562
kernel4    Kernel     master4    up     04:47:17.562
tor_b      BGP        ---        up     04:47:18.818  Established
n1_v4      BGP        ---        start  04:47:17.563  Active        Socket: Connection refused
n2_v4      BGP        ---        start  04:47:17.563  Idle          BFD session down
n3_v4      BGP        ---        down   04:47:17.563
"""
    assert bird.sessions(shown) == {"tor_b": True, "n1_v4": False, "n2_v4": False, "n3_v4": False}


def test_sessions_are_read_from_what_frr_prints() -> None:
    peers = {"172.31.2.11": {"desc": "n1_v4", "state": "Established"}, "fd00::1": {"desc": "n1_v6", "state": "Active"}}
    assert frr.sessions(json.dumps({"ipv4Unicast": {"peers": peers}, "ipv6Unicast": {"peers": peers}})) == {
        "n1_v4": True,
        "n1_v6": False,
    }
    assert frr.sessions("{}") == {}


def test_links_that_lose_all_replace_those_of_before() -> None:
    lines = switches.ruleset({"p-n2", "p-n1"}).splitlines()
    assert lines[:2] == ["add table inet lab_ports", "delete table inet lab_ports"]
    drops = [line.split() for line in lines if "drop" in line]
    assert len(drops) == 8, "in, out, and both ways through"
    assert {one[1] for one in drops} == {'"p-n1"', '"p-n2"'}
    assert "drop" not in switches.ruleset([])


def test_links_that_lose_all_are_read_from_the_kernels_words() -> None:
    rules = [{"table": "lab_ports", "comment": "p-n1"}, {"table": "lab_ports", "comment": "p-n1"}, {"table": "other"}]
    listed = {"nftables": [{"metainfo": {}}, {"table": {"name": "lab_ports"}}, *({"rule": rule} for rule in rules)]}
    assert switches.lost_links(json.dumps(listed)) == {"p-n1"}


def test_a_lab_is_asked_for_switches_and_keeps_its_shape() -> None:
    asked = parser().parse_args(["up", "--fabric", "tor", "--switch", "frr"])
    record = Record(lab="air", nodes=3, fabric=Fabric(asked.fabric), switch=SwitchDaemon(asked.switch))
    assert record.shape == "--nodes 3 --install processes --fabric tor --switch frr --bfd graceful"
    assert record.topology.switches
    assert Record(lab="air", nodes=3).shape == "--nodes 3 --install processes --fabric flat"


@pytest.mark.parametrize(
    "words", [["kill", "tor-a"], ["start", "tor-a"], ["cut", "tor-a", "n1"], ["lose", "tor-b"], ["mend", "tor-b"]]
)
def test_a_fault_is_asked_for_with_a_switch_and_hosts(words: list[str]) -> None:
    asked = parser().parse_args(["fabric", *words])
    assert [asked.action, *asked.values] == words


def test_a_fault_of_a_switch_needs_a_fabric_that_has_some(tmp_path: Path) -> None:
    where = paths("air", Settings(labs=tmp_path / "labs", run=tmp_path / "run", cache=tmp_path / "cache"))
    with pytest.raises(LabError, match=r"lab air is not there: .*--fabric tor"):
        switches.cut(where, "tor-a")
    where.state.mkdir(parents=True)
    write_record(where, Record(lab="air", nodes=2, fabric=Fabric.ROUTED))
    with pytest.raises(LabError, match="has a routed fabric, without switches"):
        switches.mend(where, "tor-a")
    assert require(where, Fabric.ROUTED).nodes == 2


def test_a_daemon_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="apt-get install bird2"):
        switches.check_program(SwitchDaemon.BIRD)
