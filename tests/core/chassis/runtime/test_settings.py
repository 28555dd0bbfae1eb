"""Every service's settings: what is needed, what each number may be, and one line that names variable and remedy."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.bus.nats_config import user_name
from chassis.faults import SettingsFault
from chassis.runtime.settings import MAX_TEXT, PREFIX, BaseSettings, default_instance, load
from proto.subjects import ROLES
from services.cluster.settings import Settings as Cluster
from services.dataplane.settings import Settings as Dataplane
from services.dns.settings import Settings as Dns
from services.ipam.settings import Settings as Ipam
from services.policy.settings import Settings as Policy
from services.routing.settings import Settings as Routing

KINDS: dict[str, type[BaseSettings]] = {
    "cluster": Cluster,
    "dataplane": Dataplane,
    "dns": Dns,
    "ipam": Ipam,
    "policy": Policy,
    "routing": Routing,
}
NEEDED = {"nats_seed_file": "/seed", "nats_user": "x", "node": "n1", "state_dir": "/state", "uplinks": "eth0"}


def needs(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def environment(kind: type[BaseSettings], **values: str) -> dict[str, str]:
    needed = {field.name: NEEDED[field.name] for field in fields(kind) if needs(field)}
    return {PREFIX + name.upper(): value for name, value in (needed | values).items()}


EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
FIELDS = [(kind, field) for kind in KINDS.values() for field in fields(kind)]
NUMBERS = [(kind, field.name) for kind, field in FIELDS if get_type_hints(kind)[field.name] in (int, float)]
IDS = [f"{kind.__module__.split('.')[1]}-{name}" for kind, name in NUMBERS]


@EVERY
def test_a_service_starts_with_what_it_needs_and_nothing_more(kind: type[BaseSettings]) -> None:
    found = load(kind, environment(kind))
    assert is_dataclass(found)
    for field in fields(kind):
        if not needs(field) and field.default is not MISSING:
            assert getattr(found, field.name) == field.default


@EVERY
def test_each_that_is_needed_is_named_when_it_lacks(kind: type[BaseSettings]) -> None:
    whole = environment(kind)
    for variable in whole:
        less = {name: value for name, value in whole.items() if name != variable}
        with pytest.raises(SettingsFault, match=f"^{variable} is not set: set it to "):
            load(kind, less)


@EVERY
def test_what_is_meant_for_others_is_passed_over(kind: type[BaseSettings]) -> None:
    more = {"AIRMESH_OF_ANOTHER_RELEASE": "x", "airmesh_node": "lower", "NODE": "bare", "PATH": "/bin"}
    assert load(kind, environment(kind) | more) == load(kind, environment(kind))


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=IDS)
@pytest.mark.parametrize("text", ["-1", "nan", "inf", "-inf", "1e400", "x", "", "1 2", "0x10", "١x"])
def test_no_number_is_negative_endless_or_none(kind: type[BaseSettings], name: str, text: str) -> None:
    """With "nan" every comparison would be false: an address would never rest, a lease never end."""
    with pytest.raises(SettingsFault) as fault:
        load(kind, environment(kind, **{name: text}))
    assert str(fault.value).startswith(f"{PREFIX}{name.upper()} = {text!r} cannot be used: use ")
    assert fault.value.variable == PREFIX + name.upper()


@EVERY
@given(data=st.data())
def test_whatever_is_set_it_is_settings_or_one_line(kind: type[BaseSettings], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(fields(kind)))
    text = data.draw(st.text(st.characters(), max_size=30))
    try:
        assert isinstance(load(kind, environment(kind, **{field.name: text})), kind)
    except SettingsFault as fault:
        assert fault.variable == PREFIX + field.name.upper()
        assert "\n" not in str(fault)
        assert fault.remedy


@pytest.mark.parametrize("over", [0, 1])
def test_a_text_is_read_up_to_its_bound(over: int) -> None:
    whole = environment(Ipam, nats_url="x" * (MAX_TEXT + over))
    if not over:
        assert len(load(Ipam, whole).nats_url) == MAX_TEXT
        return
    with pytest.raises(SettingsFault, match=f"keep it within {MAX_TEXT} characters"):
        load(Ipam, whole)


@pytest.mark.parametrize(
    ("values", "variable", "remedy"),
    [
        ({"policy_shards": "0"}, "AIRMESH_POLICY_SHARDS", "use 1 to 64"),
        ({"policy_shards": "65"}, "AIRMESH_POLICY_SHARDS", "use 1 to 64"),
        ({"policy_lease_seconds": "0.9"}, "AIRMESH_POLICY_LEASE_SECONDS", "use at least 1"),
        ({"policy_namespace_identities": "0"}, "AIRMESH_POLICY_NAMESPACE_IDENTITIES", "use at least 1"),
        ({"policy_namespace_bytes": "0"}, "AIRMESH_POLICY_NAMESPACE_BYTES", "use at least 1"),
        ({"policy_max_policy_prefixes": "0"}, "AIRMESH_POLICY_MAX_POLICY_PREFIXES", "use 1 to 10000"),
        ({"policy_max_policy_prefixes": "10001"}, "AIRMESH_POLICY_MAX_POLICY_PREFIXES", "use 1 to 10000"),
        ({"policy_max_namespace_prefixes": "10001"}, "AIRMESH_POLICY_MAX_NAMESPACE_PREFIXES", "use 1 to 10000"),
        ({"policy_max_prefixes": "131073"}, "AIRMESH_POLICY_MAX_PREFIXES", "use 1 to 131072"),
    ],
)
def test_bounds_of_policy(values: dict[str, str], variable: str, remedy: str) -> None:
    with pytest.raises(SettingsFault) as fault:
        load(Policy, environment(Policy, **values))
    assert (fault.value.variable, fault.value.remedy) == (variable, remedy)


@pytest.mark.parametrize(
    "values",
    [
        {"policy_shards": "1"},
        {"policy_shards": "64"},
        {"policy_lease_seconds": "1"},
        {"policy_grace_seconds": "0"},
        {"policy_max_policy_prefixes": "10000", "policy_max_prefixes": "131072"},
    ],
)
def test_what_is_just_within_them_is_taken(values: dict[str, str]) -> None:
    found = load(Policy, environment(Policy, **values))
    assert all(float(getattr(found, name)) == float(value) for name, value in values.items())


def test_lists_and_addresses_of_both_families() -> None:
    found = load(
        Dns, environment(Dns, dns_upstreams=" 10.0.0.1 ,fd00::1,", dns_autopath="on", dns_cluster_domain="corp.example")
    )
    assert [str(one) for one in found.dns_upstreams] == ["10.0.0.1", "fd00::1"]
    assert found.dns_autopath is True
    assert found.recipe().cluster_domain == "corp.example"
    assert isinstance(found.dns_upstreams[0], IPv4Address)
    networks = load(Dataplane, environment(Dataplane, external_ips="192.0.2.0/24,2001:db8::/32")).external_ips
    assert [str(one) for one in networks] == ["192.0.2.0/24", "2001:db8::/32"]


@pytest.mark.parametrize("text", ["192.0.2.1/24", "192.0.2.0/33", "x", "2001:db8::/129"])
def test_a_network_that_is_none_is_named(text: str) -> None:
    with pytest.raises(SettingsFault, match=r"AIRMESH_EXTERNAL_IPS = .* use an IP network such as 10\.0\.0\.0/8"):
        load(Dataplane, environment(Dataplane, external_ips=f"10.0.0.0/8,{text}"))


def test_a_kubeconfig_may_be_left_out() -> None:
    assert load(Cluster, environment(Cluster)).kubeconfig is None
    assert load(Cluster, environment(Cluster, kubeconfig="")).kubeconfig is None
    assert load(Cluster, environment(Cluster, kubeconfig="/k")).kubeconfig == Path("/k")


def test_an_instance_is_named_for_its_service_and_process() -> None:
    name = default_instance("ipam")
    assert name.startswith("ipam-")
    assert name.rpartition("-")[2].isdecimal()


@pytest.mark.parametrize("node", ["n1", "ip-10-0-0-1.example.internal"])
def test_a_nodes_name_may_have_dots_and_its_user_has_none(node: str) -> None:
    """As manifests say it, and as `airmesh` names the user: the inbox that its account grants is the same."""
    (role,) = [role for role in ROLES if role.name == "routing"]
    for said in (f"routing-{node}", user_name(role, node)):
        assert BaseSettings(nats_seed_file=Path("/seed"), nats_user=said).bus_user == user_name(role, node)
