"""What the bus' operator signs follows from the Secrets: the same again, later for a new key, and nothing of nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from chassis.bus.accounts import make_accounts
from chassis.bus.credentials import parse
from chassis.bus.nats_config import account_of_node
from chassis.bus.nats_jwt import SHARED_CONNECTIONS, Issuer, NodeIssuer, claims_of, preloaded, says_the_same
from chassis.secret import Secret
from cli.faults import Declined, Usage
from cli.install import accounts, bootstrap, names, requirements, secrets
from cli.install.rotation import holders, unserved
from cli.install.secrets import Host
from proto.subjects import role_of_user
from services.cluster.accounts import Expected, missing

HOSTS = tuple(Host(name=name, uid=name, addresses=(f"192.0.2.{n}",)) for n, name in enumerate(("n1", "n2.x", "n3"), 1))

NOW = 1_700_000_000

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
    put(there, bootstrap.missing(there, accounts.issuer(there), NOW))
    put(there, [accounts.for_cluster(there, accounts.issuer(there))])
    put(there, [accounts.bus_config(there, HOSTS, accounts.issuer(there))])
    return there


@pytest.fixture
def there(made: Secrets) -> Secrets:
    return dict(made)


def test_a_second_run_makes_and_signs_nothing(there: Secrets) -> None:
    by = accounts.issuer(there)
    assert list(accounts.missing_operator(there)) == []
    assert list(accounts.signed_keys(there, HOSTS, by)) == []
    assert list(bootstrap.missing(there, by, NOW)) == []
    assert accounts.for_cluster(there, by) == there[names.ADMISSION]
    assert accounts.bus_config(there, HOSTS, by) == there[names.BUS_CONFIG]


def test_cluster_signs_for_nodes_as_the_operator_does_and_has_no_seed_of_its(there: Secrets) -> None:
    by = accounts.issuer(there)
    texts = secrets.texts_of(there[names.ADMISSION])
    signs = NodeIssuer(Secret(texts[accounts.NODES_SEED]), json.loads(texts[accounts.PUBLIC_KEYS]))
    for jwt in accounts.of_host(there, HOSTS[0], by):
        said = claims_of(jwt)
        role, node = role_of_user(said["name"])
        own = claims_of(signs.sign_account(account_of_node(role, node), said["nats"]["revocations"]))
        assert (own["sub"], own["nats"]) == (said["sub"], said["nats"])
        assert own["iss"] in claims_of(by.jwt)["nats"]["signing_keys"]
    assert by.seed.reveal() not in json.dumps(texts)
    for name in json.loads(texts[accounts.PUBLIC_KEYS]):
        assert by.account_seed(name).reveal() not in json.dumps(texts)
        with pytest.raises(KeyError):
            NodeIssuer(signs.seed, {}).account(name)


def test_who_lets_nodes_in_proves_what_it_has_signed_itself(there: Secrets) -> None:
    by = accounts.issuer(there)
    jwt = by.sign_user("dataplane-n1", "dataplane-n1", "UA", issued=7)
    assert by.signed_at("dataplane-n1", jwt, "UA") == 7
    for account, text, public in (
        ("dataplane-n1", jwt, "UB"),
        ("dataplane-n2", jwt, "UA"),
        ("dataplane-n1", jwt[:-2], "UA"),
        ("dataplane-n1", "", "UA"),
        ("dataplane-n1", "a.b.c", "UA"),
    ):
        with pytest.raises(ValueError, match="JWT"):
            by.signed_at(account, text, public)


def test_an_operator_of_an_earlier_release_says_who_signs_for_nodes(there: Secrets) -> None:
    texts = secrets.texts_of(there[names.OPERATOR])
    there[names.OPERATOR] = secrets.secret(names.OPERATOR, {**texts, accounts.OPERATOR_JWT: "old"})
    (again,) = accounts.missing_operator(there)
    assert secrets.texts_of(again) == {**texts, accounts.OPERATOR_JWT: secrets.texts_of(again)[accounts.OPERATOR_JWT]}
    assert claims_of(secrets.texts_of(again)[accounts.OPERATOR_JWT])["nats"]["signing_keys"]


def test_what_an_earlier_release_let_a_node_in_by_ends(there: Secrets) -> None:
    """Its accounts had keys of the operator's own: who took a key then is let in by neither."""
    by = accounts.issuer(there)
    former = [claims_of(jwt) for jwt in accounts.ended(there, HOSTS[0], by)]
    now = [claims_of(jwt) for jwt in accounts.of_host(there, HOSTS[0], by)]
    assert {one["name"] for one in former} == {one["name"] for one in now}
    assert {one["sub"] for one in former}.isdisjoint(one["sub"] for one in now)
    for key in (key for key in secrets.keys(HOSTS[:1]) if key.node):
        (one,) = [one for one in former if one["name"] == key.user]
        assert (one["nats"]["imports"], one["nats"]["revocations"]) == ([], {"*": accounts.issued(there, key)})


def test_a_token_ends_and_another_is_made_while_half_of_its_time_is_left(there: Secrets) -> None:
    by = accounts.issuer(there)
    first = bootstrap.current(there[names.BOOTSTRAP])
    assert first is not None
    assert (first.issued, first.expires - first.issued) == (NOW, bootstrap.TTL)
    assert list(bootstrap.missing(there, by, NOW + bootstrap.TTL // 2 - 1)) == []
    (fresh,) = bootstrap.missing(there, by, NOW + bootstrap.TTL // 2)
    assert bootstrap.tokens(fresh)[0] == first
    found = parse(secrets.texts_of(fresh)[bootstrap.CREDENTIALS])
    said = claims_of(found.jwt)
    last = bootstrap.current(fresh)
    assert last is not None
    assert (said["sub"], said.get("exp")) == (last.public, last.expires) == (found.public, last.expires)
    there[names.BOOTSTRAP] = fresh
    (later,) = bootstrap.missing(there, by, NOW + 2 * bootstrap.TTL)
    assert first not in bootstrap.tokens(later), "who has ended is forgotten"
    other = Issuer.new()
    (fresh,) = bootstrap.missing(there, other, NOW)
    assert len(bootstrap.tokens(fresh)) == 1, "what another operator has signed is nobody's"
    assert list(bootstrap.missing({names.BOOTSTRAP: fresh}, other, NOW)) == []


def test_a_token_that_is_revoked_is_void_in_its_account_and_no_longer_given(there: Secrets) -> None:
    by = accounts.issuer(there)
    first = bootstrap.current(there[names.BOOTSTRAP])
    assert first is not None
    there[names.BOOTSTRAP] = bootstrap.added(there, by, 60, NOW)
    there[names.BOOTSTRAP] = bootstrap.revoked(there, by, first.name, NOW)
    account = by.account("bootstrap")
    said = claims_of(accounts.of_services(there, by)[account])["nats"]
    assert said.get("revocations") == {first.public: first.issued}
    assert said["limits"]["conn"] == SHARED_CONNECTIONS
    second = bootstrap.current(there[names.BOOTSTRAP])
    assert second is not None
    there[names.BOOTSTRAP] = bootstrap.revoked(there, by, second.name, NOW)
    third = bootstrap.current(there[names.BOOTSTRAP])
    assert third is not None
    assert third.public not in bootstrap.revocations(there[names.BOOTSTRAP])
    assert third.expires - third.issued == 60
    with pytest.raises(Usage, match=f"--revoke: there is no token {first.name}"):
        bootstrap.revoked(there, by, first.name, NOW)


@pytest.mark.parametrize("text", ["", "0d", "90", "1w", "-1h", "1e3d", "4000d", " 1d"])
def test_no_time_of_a_token_is_said_with_the_option(text: str) -> None:
    with pytest.raises(Usage, match="--ttl: "):
        bootstrap.seconds(text)
    assert bootstrap.seconds("90d") == bootstrap.TTL


def test_nodes_that_make_their_own_keys_have_no_secret(there: Secrets) -> None:
    own = replace(HOSTS[0], admitted=True)
    assert secrets.seeded(there, [own, *HOSTS[1:]]) == HOSTS[1:]
    node = {"metadata": {"name": "n1", "annotations": {"airmesh.io/admitted-routing": "U 7"}}}
    assert secrets.host_of(node).admitted
    assert not secrets.host_of({"metadata": {"name": "n1"}}).admitted


def test_servers_start_with_the_accounts_of_services_and_a_new_node_changes_nothing_of_it(there: Secrets) -> None:
    by = accounts.issuer(there)
    known = preloaded(secrets.texts_of(there[names.BUS_CONFIG])["nats.conf"])
    services = {key.user for key in secrets.keys(())}
    assert {claims_of(jwt)["name"] for jwt in known.values()} == {*services, "state", "system", "bootstrap"}
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


def replaced(there: Secrets, name: str) -> None:
    """Its keys, as a rotation that goes on has them."""
    keys = [key for key in secrets.keys(HOSTS) if key.secret == name]
    there[name] = accounts.renewed_key(there[name], keys, accounts.issuer(there))


def test_of_a_rotation_that_was_interrupted_those_are_left_that_it_has_not_served(there: Secrets) -> None:
    wanted = holders(HOSTS, ("n1", "n3"), ("ipam",), everyone=False)
    one, other, service = (holder.secret for holder in wanted)

    def left() -> list[str]:
        return [holder.secret for holder in unserved(there, wanted)]

    assert left() == [one, other, service], "none was begun"
    replaced(there, one)
    assert left() == [one, other, service], "it was killed before it came to the others"
    replaced(there, other)
    there[one] = accounts.with_texts(there[one], {}, {})
    assert left() == [other, service], "the first one's old keys are void"
    there[other] = accounts.with_texts(there[other], {}, {})
    assert left() == [one, other, service], "that was all: another one begins"
    assert [holder.secret for holder in unserved({}, wanted)] == [one, other, service], "who has no keys is told so"


def test_of_a_rotation_of_the_signer_nodes_are_left_that_have_no_keys_by_it(there: Secrets) -> None:
    assert accounts.renewed(there, HOSTS) == list(HOSTS)
    there[names.OPERATOR] = accounts.with_next_signer(there)
    assert (accounts.signers(there), accounts.renewed(there, HOSTS)) == ((1, 2), [])
    name = names.node_secret("n1")
    replaced(there, name)
    assert accounts.renewed(there, HOSTS) == [], "its old keys are good, too"
    there[name] = accounts.with_texts(there[name], {}, {})
    assert accounts.renewed(there, HOSTS) == [HOSTS[0]]
    assert accounts.renewed(there, [replace(HOSTS[0], admitted=True)]) == [], "what a node has made is not seen here"
    there[names.OPERATOR] = accounts.with_signer_alone(there, "servers")
    assert (accounts.signers(there), accounts.left_of_rotation(there)) == ((2,), "servers")
    there[names.OPERATOR] = accounts.with_signer_alone(there, "")
    assert accounts.left_of_rotation(there) == ""


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


def test_an_uninstall_takes_off_a_node_by_which_keys_it_was_let_in() -> None:
    marks = {"airmesh.io/admitted-routing": "U 7", "airmesh.io/admitted-dataplane": "U 8", "airmesh.io/blocks": "x"}
    node = {"metadata": {"name": "n1", "annotations": {**marks, "other.io/a": "b"}}}
    assert list(requirements.unmarked(node)) == [{"metadata": {"annotations": dict.fromkeys(marks)}}]
    assert list(requirements.unmarked({"metadata": {"name": "n1"}})) == []
