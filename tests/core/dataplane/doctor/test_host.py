"""Each fault of what is beside this agent on a node, as its facts: the one finding that names it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from kit.netfilter import Chain, Rule, Ruleset
from proto.objects import Pod
from services.dataplane.core.doctor import other_plugins, pods
from services.dataplane.core.doctor.other_plugins import Host
from services.dataplane.core.doctor.pods import Flows

OWN = "10-airmesh.conflist"


def chain(table: str, name: str, *, rules: int = 1, family: str = "ip", hook: str = "") -> Chain:
    made = tuple(Rule(handle=number, expressions=()) for number in range(rules))
    return Chain(family=family, table=table, name=name, hook=hook, rules=made)


KUBELET = (
    chain("mangle", "KUBE-KUBELET-CANARY", rules=0),
    chain("filter", "KUBE-FIREWALL"),
    chain("mangle", "KUBE-IPTABLES-HINT", rules=0),
    chain("airmesh", "masquerade", family="inet", hook="postrouting"),
)
WELL = Host(
    node="n1", ruleset=Ruleset(chains=KUBELET), configurations=(OWN, "200-loopback.conf"), own_configuration=OWN
)


def having(*chains: Chain) -> Host:
    return replace(WELL, ruleset=Ruleset(chains=(*KUBELET, *chains)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    host: Host
    code: str = ""
    says: tuple[str, ...] = ()


CASES = {
    "well": Case(host=WELL),
    "kube-proxy's rules": Case(
        host=having(
            chain("nat", "KUBE-SERVICES", rules=9), chain("nat", "KUBE-SVC-X", rules=2), chain("nat", "KUBE-SEP-Y")
        ),
        code="service-kube-proxy",
        says=("has left its rules behind", "and 1 more chains", "kube-proxy --cleanup"),
    ),
    "kube-proxy's own table": Case(
        host=having(chain("kube-proxy", "nat-prerouting", hook="prerouting"), chain("kube-proxy", "services")),
        code="service-kube-proxy",
        says=("nat-prerouting",),
    ),
    "kube-proxy runs": Case(
        host=replace(WELL, processes=("kube-proxy (pid 7)",)),
        code="service-kube-proxy",
        says=("runs beside this agent", "it runs: kube-proxy (pid 7)", "delete daemonset kube-proxy"),
    ),
    "kube-proxy by IPVS": Case(
        host=replace(WELL, virtual_servers=("TCP  0A600001:01BB rr",)),
        code="service-kube-proxy",
        says=("IPVS: 1 virtual servers",),
    ),
    "chains of kube-proxy without a rule": Case(host=having(chain("nat", "KUBE-SVC-X", rules=0))),
    "Calico's chains": Case(
        host=having(chain("filter", "cali-FORWARD", rules=3), chain("filter", "cali-from-wl", rules=2)),
        code="policy-foreign-plugin",
        says=("rules of Calico", "ip filter cali-FORWARD (3 rules) and 1 more chains"),
    ),
    "kube-router's chains": Case(
        host=having(chain("filter", "KUBE-POD-FW-A"), chain("filter", "KUBE-NWPLCY-B")),
        code="policy-foreign-plugin",
        says=("rules of kube-router",),
    ),
    "another configuration before ours": Case(
        host=replace(WELL, configurations=("05-cilium.conflist", OWN)),
        code="policy-foreign-config",
        says=("takes 05-cilium.conflist, not 10-airmesh.conflist",),
    ),
    "one that is disabled": Case(host=replace(WELL, configurations=("05-cilium.conflist.disabled", OWN))),
    "ours is not written yet": Case(host=replace(WELL, configurations=("05-cilium.conflist",))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_finding_names_what_is_beside_us(case: Case) -> None:
    found = list(other_plugins.check(case.host))
    assert [one.code for one in found] == ([case.code] if case.code else [])
    text = repr(found)
    assert [words for words in case.says if words not in text] == []


def test_a_service_that_is_asked_for_follows_from_kube_proxy() -> None:
    host = replace(WELL, processes=("kube-proxy (pid 7)",))
    (found,) = other_plugins.check(host, asked="shop/web")
    assert found.affects == ("Service shop/web",)


WEB = Pod("shop", "web", "u1", "n1", addresses=(ip_address("10.0.0.1"),), phase="Running")


@pytest.mark.parametrize(
    ("pod", "uids", "is_unattached"),
    [
        (WEB, (), True),
        (WEB, ("u1",), False),
        (WEB, ("u2",), True),
        (Pod("a", "b", "u1", "n1", addresses=WEB.addresses, phase="Running", static_uid="s"), ("s",), False),
        (Pod("a", "b", "u1", "n1", phase="Running"), (), False),
        (Pod("a", "b", "u1", "n1", addresses=WEB.addresses, phase="Pending"), (), False),
        (Pod("a", "b", "u1", "n1", addresses=WEB.addresses, phase="Running", host_network=True), (), False),
        (Pod("a", "b", "u1", "n1", addresses=WEB.addresses, phase="Running", terminating=True), (), False),
    ],
)
def test_a_pod_that_is_no_endpoint(pod: Pod, uids: tuple[str, ...], is_unattached: bool) -> None:
    assert pods.unattached([pod], uids) == ({pod.uid} if is_unattached else set())
    found = list(pods.check_unattached("n1", [pod], pods.unattached([pod], uids)))
    assert [one.code for one in found] == (["policy-pod-unattached"] if is_unattached else [])


@pytest.mark.parametrize(
    ("flows", "codes"),
    [
        (Flows(node="n1", used=900, entries=1000, pods={"shop/web ingress": (10, 100)}), []),
        (Flows(node="n1", used=960, entries=1000, pods={}), ["service-conntrack-full"]),
        (Flows(node="n1", used=9, entries=1000, pods={"shop/web egress": (99, 100)}), ["service-flow-budget"]),
        (Flows(node="n1", used=0, entries=1000, pods={"shop/web egress": (0, 0)}), []),
    ],
)
def test_flows_that_come_near_to_their_room(flows: Flows, codes: list[str]) -> None:
    assert [one.code for one in pods.check_flows(flows)] == codes


def test_every_code_has_a_page() -> None:
    faults = Path(__file__).parents[4] / "docs" / "faults"
    for code in (*other_plugins.CODES, pods.UNATTACHED, pods.TABLE_FULL, pods.BUDGET):
        assert (faults / f"{code}.md").is_file(), code
