"""The plan of a lab's network: names, numbers, and what must never be named."""

import pytest

from lab import topology
from lab.topology import Fabric, LabError, fabric_commands, host_commands, namespace_commands, plan, router_commands


def test_hosts_have_the_addresses_of_the_contract() -> None:
    lab = plan("air", 3)
    assert {(h.namespace, str(h.fabric4), str(h.fabric6), str(h.management4)) for h in lab.hosts} == {
        ("am-air-cp", "172.30.0.2", "fd00:172:30::2", "172.31.0.2"),
        ("am-air-n1", "172.30.0.11", "fd00:172:30::11", "172.31.0.11"),
        ("am-air-n2", "172.30.0.12", "fd00:172:30::12", "172.31.0.12"),
        ("am-air-n3", "172.30.0.13", "fd00:172:30::13", "172.31.0.13"),
    }


def test_two_labs_share_no_namespace_and_every_address() -> None:
    one, two = plan("air", 3), plan("air2", 3)
    assert not set(one.namespaces) & set(two.namespaces)
    assert not any(name.startswith(topology.prefix("air")) for name in two.namespaces)
    assert [h.fabric4 for h in one.hosts] == [h.fabric4 for h in two.hosts]


@pytest.mark.parametrize("name", ["", "Air", "a-b", "1air", "a.b", "x" * 13, "a/b", "a\n"])
def test_names_that_collide_or_escape_a_folder_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="lab name"):
        plan(name, 1)


@pytest.mark.parametrize("nodes", [0, -1, 61])
def test_sizes_without_addresses_are_refused(nodes: int) -> None:
    with pytest.raises(LabError, match=f"nodes {nodes}"):
        plan("air", nodes)


def test_the_largest_lab_has_no_address_twice_and_no_long_name() -> None:
    lab = plan("twelveletter", topology.MAXIMUM_NODES)
    made = [line.split() for line in fabric_commands(lab) if line.startswith("link add")]
    links = [words[2] for words in made] + [words[words.index("name") + 1] for words in made if "name" in words]
    assert max(map(len, links)) <= 15
    assert len({h.fabric4 for h in lab.hosts} | {h.management4 for h in lab.hosts}) == 2 * len(lab.hosts)
    assert all(h.fabric6 in topology.FABRIC6 and h.fabric4 in topology.FABRIC4 for h in lab.hosts)


def test_every_cable_ends_in_a_host_and_on_a_bridge() -> None:
    lab = plan("air", 2)
    commands = list(fabric_commands(lab))
    for host in lab.hosts:
        assert f"link add f-{host.name} type veth peer name fab0 netns {host.namespace}" in commands
        assert f"link set f-{host.name} master fabric up" in commands
        assert f"link set m-{host.name} master mgmt up" in commands


def test_a_host_has_both_default_routes_and_no_tentative_address() -> None:
    commands = list(host_commands(plan("air", 1).nodes[0]))
    assert "route add default via 172.30.0.1 dev fab0" in commands
    assert "route add default via fd00:172:30::1 dev fab0" in commands
    assert all(line.endswith("nodad") for line in commands if "addr add fd" in line)


def test_all_namespaces_are_made_before_cables_need_them() -> None:
    assert list(namespace_commands(plan("air", 1))) == [
        "netns add am-air-fab",
        "netns add am-air-cp",
        "netns add am-air-n1",
    ]


@pytest.mark.parametrize(("nodes", "zones"), [(1, "z1"), (3, "z1 z2 z3"), (6, "z1 z2 z3 z1 z2 z3")])
def test_nodes_are_dealt_out_to_three_zones_and_the_control_plane_is_in_none(nodes: int, zones: str) -> None:
    lab = plan("air", nodes)
    assert [host.zone for host in lab.nodes] == zones.split()
    assert lab.control.zone == ""


def test_a_routed_fabric_has_two_segments_with_the_control_plane_and_half_of_the_nodes_on_the_first() -> None:
    lab = plan("air", 3, Fabric.ROUTED)
    assert {(h.name, h.segment.bridge, str(h.fabric4), str(h.fabric6)) for h in lab.hosts} == {
        ("cp", "fabric", "172.30.0.2", "fd00:172:30::2"),
        ("n1", "fabric", "172.30.0.11", "fd00:172:30::11"),
        ("n2", "fabric2", "172.30.1.12", "fd00:172:30:1::12"),
        ("n3", "fabric2", "172.30.1.13", "fd00:172:30:1::13"),
    }
    assert lab.namespaces[:2] == ("am-air-fab", "am-air-rtr")
    for host in lab.hosts:
        assert host.fabric4 in host.segment.network4
        assert host.fabric6 in host.segment.network6
        assert f"link set f-{host.name} master {host.segment.bridge} up" in list(fabric_commands(lab))
        assert f"route add default via {host.segment.gateway4} dev fab0" in list(host_commands(host))
    assert [len({h.segment for h in plan("air", n, Fabric.ROUTED).nodes}) for n in (1, 2, 6)] == [1, 2, 2]


def test_the_router_has_a_leg_on_each_segment_and_knows_no_address_of_a_pod() -> None:
    lab = plan("air", 2, Fabric.ROUTED, 1400)
    commands = list(router_commands(lab))
    for line in (
        "addr add 172.30.0.254/24 dev seg0 noprefixroute",
        "addr add fd00:172:30:1::254/64 dev seg1 nodad noprefixroute",
        "route replace 172.30.1.0/24 dev seg1 mtu 1400",
        "route replace fd00:172:30::/64 dev seg0 mtu 1400",
    ):
        assert line in commands
    routes = [line.split()[2] for line in commands if line.startswith("route")]
    assert not {"default", "0.0.0.0/0", "::/0"}.intersection(routes)
    assert not [one for one in routes if one.startswith(("10.", "fd00:10"))]


@pytest.mark.parametrize(("fabric", "mtu"), [("routed", 1279), ("routed", 1501), ("flat", 1400), ("tor", 1400)])
def test_an_mtu_that_cannot_be_is_refused(fabric: str, mtu: int) -> None:
    with pytest.raises(LabError, match=f"fabric MTU {mtu}"):
        plan("air", 2, Fabric(fabric), mtu)


def test_a_flat_fabric_is_what_it_always_was() -> None:
    lab = plan("air", 2)
    assert (lab.router_namespace, lab.segments) == ("", (topology.FLAT,))
    assert not [line for line in fabric_commands(lab) if "seg0" in line or "fabric2" in line]


def test_hosts_behind_switches_keep_their_addresses_and_have_a_port_on_each() -> None:
    lab, flat = plan("air", 3, Fabric.TOR), plan("air", 3)
    assert [(h.fabric4, h.fabric6, h.management4) for h in lab.hosts] == [
        (h.fabric4, h.fabric6, h.management4) for h in flat.hosts
    ]
    assert lab.namespaces == ("am-air-fab", "am-air-tor-a", "am-air-tor-b", *(h.namespace for h in lab.hosts))
    assert [(s.asn, str(s.address4), str(s.link4), str(s.link6)) for s in lab.switches] == [
        (65001, "172.31.0.1", "172.31.4.1", "fd00:172:31:4::1"),
        (65002, "172.31.1.1", "172.31.4.2", "fd00:172:31:4::2"),
    ]
    n1 = lab.nodes[0]
    assert n1.fabric_links == ("fab0", "fab1")
    assert [(str(p.local4), str(p.local6), str(p.remote4), str(p.remote6)) for p in n1.uplinks] == [
        ("172.31.0.1", "fd00:172:31::1", "172.31.2.11", "fd00:172:31:2::11"),
        ("172.31.1.1", "fd00:172:31:1::1", "172.31.3.11", "fd00:172:31:3::11"),
    ]
    assert {host.name: [port.asn for port in host.uplinks] for host in lab.hosts} == {
        "cp": [0, 0],
        **{node.name: [64512, 64512] for node in lab.nodes},
    }


def test_the_largest_lab_behind_switches_has_no_address_of_a_link_twice() -> None:
    lab = plan("twelveletter", topology.MAXIMUM_NODES, Fabric.TOR)
    remotes = [address for switch in lab.switches for port in switch.ports for address in (port.remote4, port.remote6)]
    assert len(set(remotes)) == len(remotes) == 4 * (topology.MAXIMUM_NODES + 2)
    assert all(one in (topology.TOR_LINKS4 if one.version == 4 else topology.TOR_LINKS6) for one in remotes)
    assert not any(one in topology.MANAGEMENT4 for one in remotes if one.version == 4), (
        "it would lead past the switches"
    )
    names = [port.name for switch in lab.switches for port in switch.ports]
    assert max(map(len, names)) <= 15


def test_no_two_hosts_behind_switches_share_a_layer_2_network_but_the_management_one() -> None:
    lab = plan("air", 3, Fabric.TOR)
    commands = list(fabric_commands(lab))
    assert [line.split()[2] for line in commands if "type bridge" in line] == ["mgmt"]
    cables = [line for switch in lab.switches for line in topology.switch_commands(lab, switch) if "veth" in line]
    assert len(cables) == 2 * 5 + 1
    assert len({line.split("peer name ")[1] for line in cables}) == len(cables)
    assert not [line for line in commands if "fab0" in line]


def test_a_host_behind_switches_reaches_everything_by_both_and_speaks_with_its_own_address() -> None:
    commands = list(host_commands(plan("air", 1, Fabric.TOR).nodes[0]))
    hops = "nexthop via 172.31.0.1 dev fab0 onlink nexthop via 172.31.1.1 dev fab1 onlink"
    assert f"route add 0.0.0.0/0 src 172.30.0.11 {hops}" in commands
    hops6 = "nexthop via fd00:172:31::1 dev fab0 onlink nexthop via fd00:172:31:1::1 dev fab1 onlink"
    assert f"route add ::/0 src fd00:172:30::11 {hops6}" in commands
    assert "addr add 172.30.0.11 dev lo" in commands
    for link in ("fab0", "fab1"):
        up = commands.index(f"link set {link} up")
        assert all(up < i for i, line in enumerate(commands) if line.startswith("addr") and line.split()[-2] == link)


def test_what_a_fabric_of_switches_has_not_is_refused() -> None:
    lab = plan("air", 1, Fabric.TOR)
    with pytest.raises(LabError, match="switch 'tor-c': this fabric has tor-a, tor-b"):
        lab.switch("tor-c")
    with pytest.raises(LabError, match="host 'n2': switch tor-a has ports for out, cp, n1"):
        lab.switch("tor-a").port("n2")
    with pytest.raises(LabError, match="switch 'tor-a': this fabric has none"):
        plan("air", 1).switch("tor-a")
