"""What the bus' operator signs follows from the Secrets: the same again, later for a new key, and nothing of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from chassis.bus.accounts import make_accounts
from chassis.bus.credentials import parse
from chassis.bus.nats_jwt import claims_of, preloaded, says_the_same
from cli.faults import Declined, Usage
from cli.install import accounts, names, secrets
from cli.install.rotation import holders
from cli.install.secrets import Host
from services.cluster.accounts import Expected, missing

HOSTS = tuple(Host(name=name, uid=name, addresses=(f"192.0.2.{n}",)) for n, name in enumerate(("n1", "n2.x", "n3"), 1))

Secrets = dict[str, Any]


def put(there: Secrets, found: Any) -> None:
    for one in found:
        there[one["metadata"]["name"]] = one


@pytest.fixture(scope="module")
def made() -> Secrets:
    there: Secrets = {}
    put(there, secrets.missing_keys(there, HOSTS))
    there[names.BUS_SECRET] = secrets.secret(names.BUS_SECRET, {secrets.ROUTES_KEY: "x"})
    put(there, accounts.missing_operator(there))
    put(there, accounts.signed_keys(there, HOSTS, accounts.issuer(there)))
    put(there, [accounts.bus_config(there, HOSTS, accounts.issuer(there))])
    return there


@pytest.fixture
def there(made: Secrets) -> Secrets:
    return dict(made)


def test_a_second_run_makes_and_signs_nothing(there: Secrets) -> None:
    by = accounts.issuer(there)
    assert list(accounts.missing_operator(there)) == []
    assert list(accounts.signed_keys(there, HOSTS, by)) == []
    assert accounts.bus_config(there, HOSTS, by) == there[names.BUS_CONFIG]


def test_servers_start_with_the_accounts_of_services_and_a_new_node_changes_nothing_of_it(there: Secrets) -> None:
    by = accounts.issuer(there)
    known = preloaded(secrets.texts_of(there[names.BUS_CONFIG])["nats.conf"])
    services = {key.user for key in secrets.keys(())}
    assert {claims_of(jwt)["name"] for jwt in known.values()} == {*services, "state", "system"}
    more = (*HOSTS, Host(name="n4", uid="n4", addresses=("192.0.2.4",)))
    put(there, secrets.missing_keys(there, more))
    put(there, accounts.signed_keys(there, more, by))
    assert accounts.bus_config(there, HOSTS, by) == there[names.BUS_CONFIG]


def test_a_nodes_accounts_are_those_that_they_are_among_all(there: Secrets) -> None:
    by = accounts.issuer(there)
    everyone = {one.name: one for one in make_accounts(secrets.users(there, HOSTS))}
    for host in HOSTS:
        for jwt in accounts.of_host(there, host, by):
            said = claims_of(jwt)
            wanted = by.sign_account(everyone[said["name"]], said["nats"]["revocations"])
            assert says_the_same(jwt, wanted)


def test_a_new_key_is_good_beside_the_old_one_and_is_made_once(there: Secrets) -> None:
    by, host = accounts.issuer(there), HOSTS[0]
    keys = [key for key in secrets.keys([host]) if key.node]
    old = {key.entry: accounts.issued(there, key) for key in keys}
    before = accounts.of_host(there, host, by)
    name = names.node_secret(host.name)
    there[name] = accounts.renewed_key(there[name], keys, by)
    assert accounts.is_replaced(there[name])
    assert accounts.renewed_key(there[name], keys, by) == there[name]
    for key in keys:
        assert accounts.issued(there, key) > old[key.entry], "in the same second, too"
    assert all(says_the_same(*pair) for pair in zip(before, accounts.of_host(there, host, by), strict=True))

    there[name] = accounts.with_texts(there[name], {}, {})
    assert not accounts.is_replaced(there[name])
    for key, jwt in zip(keys, accounts.of_host(there, host, by), strict=True):
        (since,) = claims_of(jwt)["nats"]["revocations"].values()
        assert old[key.entry] <= since < accounts.issued(there, key)


def test_of_a_node_that_is_gone_nobody_is_let_in(there: Secrets) -> None:
    by = accounts.issuer(there)
    left, jwts = accounts.gone(there, HOSTS[:2], by)
    assert left == [names.node_secret("n3")]
    wanted = {key.user: accounts.issued(there, key) for key in secrets.keys(HOSTS[2:]) if key.node}
    assert {claims_of(jwt)["name"]: claims_of(jwt)["nats"]["revocations"]["*"] for jwt in jwts} == wanted
    assert accounts.gone(there, HOSTS, by) == ([], [])


def test_an_operator_that_is_gone_from_beneath_its_bus_is_no_reason_to_make_another(there: Secrets) -> None:
    del there[names.OPERATOR]
    with pytest.raises(Declined, match=f"Secret {names.OPERATOR} is gone"):
        list(accounts.missing_operator(there))
    there[names.OPERATOR] = secrets.secret(names.OPERATOR, {accounts.OPERATOR_SEED: "SU"})
    with pytest.raises(Declined, match="holds no seed of an operator"):
        accounts.issuer(there)


def test_seeds_of_before_are_signed_as_they_are(there: Secrets) -> None:
    by = accounts.issuer(there)
    name = names.seed_secret("ipam")
    seed = parse(secrets.texts_of(there[name])["seed"]).seed
    there[name] = secrets.secret(name, {"seed": seed.reveal() + "\n"})
    (key,) = (key for key in secrets.keys(()) if key.secret == name)
    with pytest.raises(Declined, match="nobody has signed"):
        accounts.renewed_key(there[name], [key], by)
    (signed,) = accounts.signed_keys(there, HOSTS, by)
    one = parse(secrets.texts_of(signed)["seed"])
    assert one.seed == seed
    assert claims_of(one.jwt)["iss"] == by.account("ipam")


@pytest.mark.parametrize("text", ["[1]", "{", '{"seed": "x"}'], ids=["a list", "no JSON", "no second"])
def test_an_annotation_that_says_nothing_is_named(there: Secrets, text: str) -> None:
    found = there[names.seed_secret("dns")]
    found = {**found, "metadata": {**found["metadata"], "annotations": {names.SINCE: text}}}
    with pytest.raises(Declined, match="take it off"):
        accounts.is_replaced(found)


@pytest.mark.parametrize(
    ("runs", "keys", "why"),
    [
        (True, {"new"}, ""),
        (True, set(), "no agent is connected"),
        (False, set(), ""),
        (True, {"new", "old"}, "by another key"),
        (False, {"old"}, "by another key"),
    ],
    ids=["taken", "away", "a person's", "a copy late", "a person by the old one"],
)
def test_a_key_is_taken_when_nobody_is_connected_by_another(runs: bool, keys: set[str], why: str) -> None:
    found = missing(Expected(account="A", public="new", runs=runs), keys)
    assert bool(found) is bool(why)
    assert why in found


def test_whose_keys_are_rotated() -> None:
    every = [one.name for one in holders(HOSTS, (), (), everyone=True)]
    assert every == [*(f"service {name}" for name in ("cluster", "ipam", "policy", "dns", "cli")), *_NODES]
    some = holders(HOSTS, ("n2.x",), ("ipam",), everyone=False)
    assert [(one.name, [key.entry for key in one.keys]) for one in some] == [
        ("node n2.x", ["routing.seed", "dataplane.seed"]),
        ("service ipam", ["seed"]),
    ]


_NODES = [f"node {host.name}" for host in HOSTS]


@pytest.mark.parametrize(
    ("nodes", "services", "sentence"),
    [
        ((), (), "whose keys are not said"),
        (("n9",), (), "there is no node n9"),
        ((), ("dataplane",), "there is no service dataplane"),
    ],
    ids=["nobody", "an unknown node", "a role of nodes"],
)
def test_whose_keys_is_one_sentence(nodes: tuple[str, ...], services: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(Usage, match=sentence):
        holders(HOSTS, nodes, services, everyone=False)
