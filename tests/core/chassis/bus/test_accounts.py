"""Accounts as they are made: whom each can reach follows from the table of roles, nothing over and nothing lacking."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from chassis.bus.accounts import STATE, Account, Import, make_accounts, meet
from chassis.bus.nats_config import Server, make_users, new_key, render, user_name
from chassis.bus.nats_jwt import RESOLVER_USER, SYSTEM, Issuer, Signed, render_signed, sign
from chassis.secret import Secret
from proto.codec import encode_segment
from proto.subjects import DISCOVERY, ROLES, discovery_inbox

TOKENS = st.sampled_from(["a", "b", "c", "*"])
PATTERNS = st.builds(
    lambda tokens, tail: ".".join(tokens + ([">"] if tail else [])),
    st.lists(TOKENS, min_size=1, max_size=4),
    st.booleans(),
)
SUBJECTS = [".".join(tokens) for count in range(1, 6) for tokens in itertools.product("abc", repeat=count)]
NODES = ("n1", "n2", "n.3")


def matches(pattern: str, subject: str) -> bool:
    """As NATS has it: ``*`` one token, ``>`` one and all that follow."""
    wanted, found = pattern.split("."), subject.split(".")
    for at, token in enumerate(wanted):
        if token == ">":
            return len(found) > at
        if at >= len(found) or token not in ("*", found[at]):
            return False
    return len(wanted) == len(found)


@given(PATTERNS, PATTERNS)
def test_what_two_patterns_have_in_common(one: str, other: str) -> None:
    met = meet(one, other)
    both = [subject for subject in SUBJECTS if matches(one, subject) and matches(other, subject)]
    assert [subject for subject in SUBJECTS if met and matches(met, subject)] == both
    assert meet(other, one) == met
    assert meet(one, one) == one


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        ("a.>", "a", ""),
        ("a", "a.b", ""),
        ("a.*", "a.>", "a.*"),
        (">", "a.*.c", "a.*.c"),
        ("a.*.c", "*.b.*", "a.b.c"),
        ("a.>", "*.b.>", "a.b.>"),
        ("$KV.x.>", "$KV.y.>", ""),
    ],
)
def test_a_table_of_common_subjects(one: str, other: str, met: str) -> None:
    assert meet(one, other) == met


USERS = make_users(ROLES, NODES)
ACCOUNTS = make_accounts(USERS)
BY_NAME = {account.name: account for account in ACCOUNTS}
IMPORTS = [(account, one) for account in ACCOUNTS for one in account.imports]


def covered(pattern: str, subject: str) -> bool:
    """Whether a pattern names all that another names."""
    return meet(pattern, subject) == subject


def test_each_user_is_alone_in_its_account_and_the_streams_have_none() -> None:
    assert [account.name for account in ACCOUNTS] == [STATE, *(user.name for user in USERS)]
    assert BY_NAME[STATE].user is None
    assert all(account.user is not None and account.user.name == account.name for account in ACCOUNTS[1:])
    assert len({user.public for user in USERS}) == len(USERS)


@pytest.mark.parametrize(("account", "one"), IMPORTS, ids=lambda one: getattr(one, "name", getattr(one, "local", "")))
def test_what_is_imported_is_exported_there(account: Account, one: Import) -> None:
    """A server refuses its whole configuration otherwise."""
    exports = [export.subject for export in BY_NAME[one.account].exports if export.kind == one.kind]
    assert any(covered(export, one.subject) for export in exports), one
    assert one.local.count("*") == one.subject.count("*"), "the same wildcards on both sides"


@pytest.mark.parametrize("account", ACCOUNTS[1:], ids=lambda account: account.name)
def test_no_import_is_covered_by_another(account: Account) -> None:
    """A message that two imports take crosses twice."""
    for one, other in itertools.permutations(account.imports, 2):
        if one.account == other.account and one.kind == other.kind:
            assert not covered(one.local, other.local), (one, other)


@pytest.mark.parametrize("account", ACCOUNTS[1:], ids=lambda account: account.name)
def test_a_user_may_publish_exactly_what_leaves_its_account_or_is_its_own(account: Account) -> None:
    assert account.user is not None
    role, segment = account.user.role, encode_segment(account.user.node)
    leaves = {one.local for one in account.imports if one.kind == "service"}
    own = {subject.replace("{node}", segment) for subject in role.publishes}
    own |= {DISCOVERY} & set(role.requests)
    own |= {"_R_.>"} if role.serves else set()
    assert set(account.publish) == leaves | own
    assert ">" not in account.publish
    assert not any(subject.startswith(("_INBOX.>", "$JS", "$SYS")) for subject in account.publish)


@pytest.mark.parametrize("account", ACCOUNTS[1:], ids=lambda account: account.name)
def test_a_user_hears_its_own_inbox_and_no_others(account: Account) -> None:
    inboxes = [subject for subject in account.subscribe if subject.startswith("_INBOX")]
    assert inboxes == [f"_INBOX.{account.name}.>"]
    assert not any(subject in (">", "$SYS.>", "$JS.>") for subject in account.subscribe)


def test_a_nodes_account_names_that_node_alone() -> None:
    """What one node can reach of the streams is not another's."""
    for user in USERS:
        others = {encode_segment(node) for node in NODES} - {encode_segment(user.node)}
        if user.role.per_node:
            tokens = {token for one in BY_NAME[user.name].imports for token in one.local.split(".")}
            assert not tokens & others


def test_an_answer_to_discovery_bears_the_name_of_who_gives_it() -> None:
    (asker,) = (user for user in USERS if DISCOVERY in user.role.requests)
    inbox = discovery_inbox(asker.name)
    for account in ACCOUNTS[1:]:
        answers = [one for one in account.imports if one.local.startswith(f"{inbox}.")]
        if account.name == asker.name or (account.user is not None and account.user.role.shared):
            assert answers == []
            continue
        assert [(one.account, one.subject, one.local) for one in answers] == [
            (asker.name, f"{inbox}.{account.name}.*", f"{inbox}.*")
        ]


def test_a_new_node_is_new_accounts_and_changes_none_that_is_there() -> None:
    """Those that an operator has signed need not be signed again."""
    joined = make_users([role for role in ROLES if role.per_node], ["n9"])
    more = {account.name: account for account in make_accounts((*USERS, *joined))}
    for name, before in BY_NAME.items():
        after = more[name]
        assert (after.publish, after.subscribe, after.exports) == (before.publish, before.subscribe, before.exports)
        assert after.imports == before.imports


def decoded(jwt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    head, body, _ = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in jwt.split("."))
    return json.loads(head), json.loads(body)


def key_of(public: str) -> VerifyKey:
    """The key within a public nkey: its kind, 32 bytes and a checksum, in base32."""
    return VerifyKey(base64.b32decode(public + "=" * (-len(public) % 8))[1:33])


def verify(jwt: str, public: str) -> None:
    text, _, signature = jwt.rpartition(".")
    key_of(public).verify(text.encode(), base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))


@pytest.fixture(scope="module")
def signed() -> Signed:
    return sign(ACCOUNTS, operator="hand")


def jwt_of(credentials: str) -> str:
    lines = credentials.splitlines()
    return lines[lines.index("-----BEGIN NATS USER JWT-----") + 1]


def test_the_operator_signs_every_account_and_an_account_its_user_alone(signed: Signed) -> None:
    _, operator = decoded(signed.operator)
    verify(signed.operator, operator["sub"])
    assert operator["iss"] == operator["sub"]
    for public, jwt in signed.accounts.items():
        _, body = decoded(jwt)
        verify(jwt, operator["sub"])
        assert (body["sub"], body["iss"]) == (public, operator["sub"])
    by_name = {decoded(jwt)[1]["name"]: public for public, jwt in signed.accounts.items()}
    assert by_name.keys() == {*BY_NAME, "system"}
    for name, secret in signed.credentials.items():
        jwt = jwt_of(secret.reveal())
        issuer = by_name[{"hand": STATE, RESOLVER_USER: SYSTEM}.get(name, name)]
        verify(jwt, issuer)
        assert decoded(jwt)[1]["iss"] == issuer
        other = by_name["ipam" if name != "ipam" else "policy"]
        with pytest.raises(BadSignatureError):
            verify(jwt, other)


def test_the_claims_say_what_the_accounts_say(signed: Signed) -> None:
    claims = {body["name"]: body for _, body in map(decoded, signed.accounts.values())}
    by_public = {body["sub"]: name for name, body in claims.items()}
    for name, account in BY_NAME.items():
        nats = claims[name]["nats"]
        assert (nats["type"], nats["version"]) == ("account", 2)
        assert [one["subject"] for one in nats["exports"]] == [one.subject for one in account.exports]
        assert [
            (by_public[one["account"]], one["subject"], one.get("local_subject", one["subject"]), one["type"])
            for one in nats["imports"]
        ] == [(one.account, one.subject, one.local, one.kind) for one in account.imports]
        permissions = nats["default_permissions"]
        assert permissions["pub"].get("allow", []) == list(account.publish)
        assert permissions["sub"].get("allow", []) == list(account.subscribe)
        stores = nats["limits"]["streams"]
        assert stores == (-1 if name == STATE else 0), "no streams but those of the mesh"


def test_a_users_credentials_hold_its_seed_and_no_other(signed: Signed) -> None:
    for user in USERS:
        text = signed.credentials[user.name].reveal()
        assert text.count(user.seed.reveal()) == 1
        assert sum(other.seed.reveal() in text for other in USERS) == 1
        assert signed.operator_seed.reveal() not in text
        assert len(jwt_of(text)) < 4096, "it travels in one line of at most 4 KiB"
    shown = repr(signed)
    assert not any(secret.reveal() in shown for secret in (*signed.account_seeds.values(), signed.operator_seed))


def test_no_configuration_holds_a_seed(signed: Signed, tmp_path: Any) -> None:
    by_file, by_jwt = render(USERS, Server(store_dir=tmp_path)), render_signed(signed, Server(store_dir=tmp_path))
    seeds = [user.seed.reveal() for user in USERS] + [one.reveal() for one in signed.account_seeds.values()]
    for text in (by_file, by_jwt):
        assert [seed for seed in (*seeds, signed.operator_seed.reveal()) if seed in text] == []
    assert "allow_responses" not in by_file
    assert '"deny"' not in by_file + by_jwt


def test_everything_follows_from_the_operators_seed() -> None:
    """So that who admits nodes keeps nothing else, and an installation that is rendered again knows its nodes."""
    first = Issuer.new()
    again, other = Issuer(first.seed), Issuer.new()
    assert sign(ACCOUNTS, issuer=first).accounts.keys() == sign(ACCOUNTS, issuer=again).accounts.keys()
    names = [account.name for account in ACCOUNTS]
    assert len({first.account(name) for name in names} | {other.account(name) for name in names}) == 2 * len(names)


@pytest.mark.parametrize(
    "seed", ["", "SU", "x" * 58, new_key()[0].reveal()], ids=["nothing", "a prefix", "letters", "a user's"]
)
def test_what_is_no_operators_seed_signs_nothing(seed: str) -> None:
    with pytest.raises(ValueError, match="seed of an nkey"):
        Issuer(Secret(seed))


@pytest.mark.parametrize("name", ["ipam", "dataplane-n=2E3"])
def test_a_changed_claim_is_no_claim(signed: Signed, name: str) -> None:
    jwt = jwt_of(signed.credentials[name].reveal())
    issuer = decoded(jwt)[1]["iss"]
    head, body, signature = jwt.split(".")
    for changed in (f"{head}.{body[:-2]}AA.{signature}", f"{head}.{body}.{'A' * len(signature)}"):
        with pytest.raises((BadSignatureError, ValueError)):
            verify(changed, issuer)


def test_new_keys_are_users_keys_and_never_the_same() -> None:
    made = [new_key() for _ in range(20)]
    assert len({public for _, public in made}) == 20
    for seed, public in made:
        assert public.startswith("U")
        assert nkeys.from_seed(bytearray(seed.reveal().encode())).public_key.decode() == public


def test_users_are_one_for_each_role_or_role_and_node() -> None:
    names = [user.name for user in USERS]
    assert len(names) == len(set(names))
    assert names == [user_name(user.role, user.node) for user in USERS]
    assert {name for name in names if name.startswith("dataplane")} == {
        "dataplane-n1",
        "dataplane-n2",
        "dataplane-n=2E3",
    }
    again = make_users(ROLES, NODES, extra=[("routing", "cp"), ("routing", "n1")])
    assert {user.name for user in again} - set(names) == {"routing-cp"}
