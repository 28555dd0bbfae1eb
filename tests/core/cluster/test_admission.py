"""Who is let onto the bus, by state: what is asked, what the API server says of who asks, what the bus has."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgspec
import pytest

from proto.admission import AUDIENCE, AdmissionRequest
from services.cluster.core.admission import (
    Asker,
    Denial,
    Grant,
    Standing,
    admitted_at,
    asker,
    decide,
    malformed,
    no_node,
    node_body,
    standing,
    stranger,
)

ACCOUNT = "airmesh-system:airmesh"
KEY, OTHER = "U" + "A" * 55, "U" + "B" * 55
ASKS = AdmissionRequest("n1", "dataplane", KEY, "token")
ROLES = {"dataplane", "routing"}


def review(**changed: Any) -> bytes:
    extra = {
        "authentication.kubernetes.io/node-name": ["n1"],
        "authentication.kubernetes.io/node-uid": ["1-1"],
        "authentication.kubernetes.io/pod-name": ["dataplane-x"],
    }
    extra |= changed.pop("extra", {})
    user = {"username": f"system:serviceaccount:{ACCOUNT}", "extra": {k: v for k, v in extra.items() if v}}
    user["username"] = changed.pop("username", user["username"])
    status = {"authenticated": True, "user": user, "audiences": [AUDIENCE], **changed}
    return msgspec.json.encode({"kind": "TokenReview", "status": status})


def code(found: object) -> str:
    assert isinstance(found, Denial)
    assert ": " in found.sentence
    assert "\n" not in found.sentence
    return found.code


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"role": "ipam"}, "role"),
        ({"role": "x\x1b[2J" * 90}, "role"),
        ({"public": KEY[:-1]}, "public"),
        ({"public": "A" + KEY[1:]}, "public"),
        ({"public": KEY[:-1] + " "}, "public"),
        ({"token": ""}, "token"),
        ({"token": "t" * 8193}, "token"),
    ],
    ids=["role", "long role", "short key", "account key", "key with a blank", "no token", "long token"],
)
def test_what_is_no_question_names_its_field(changed: dict[str, str], field: str) -> None:
    denial = malformed(msgspec.structs.replace(ASKS, **changed), ROLES)
    assert code(denial) == "malformed"
    assert denial is not None
    assert denial.sentence.startswith(f"{field}: ")
    assert denial.sentence.isprintable()
    assert len(denial.sentence) < 400
    assert malformed(ASKS, ROLES) is None


def test_the_api_servers_word_names_pod_and_node() -> None:
    assert asker(review(), ACCOUNT) == Asker("dataplane-x", "n1", "1-1")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"{", "unavailable"),
        (b"{}", "token-refused"),
        (review(authenticated=False, error="token has expired"), "token-refused"),
        (review(audiences=["https://kubernetes.default.svc"]), "token-refused"),
        (review(audiences=None), "token-refused"),
        (review(username="system:serviceaccount:airmesh-system:cluster"), "not-an-agent"),
        (review(username="system:serviceaccount:shop:airmesh"), "not-an-agent"),
        (review(username="system:node:n1"), "not-an-agent"),
        (review(extra={"authentication.kubernetes.io/node-name": []}), "not-bound"),
        (review(extra={"authentication.kubernetes.io/pod-name": []}), "not-bound"),
    ],
    ids=[
        *("broken", "empty", "expired", "for another", "for nobody"),
        *("cluster's", "another namespace's", "a kubelet's", "of no node", "of no pod"),
    ],
)
def test_a_token_of_anything_else_is_refused(answer: bytes, expected: str) -> None:
    denial = asker(answer, ACCOUNT)
    assert code(denial) == expected
    assert isinstance(denial, Denial)
    assert denial.retry is (expected == "unavailable")


def test_a_node_asks_for_itself_alone_while_its_node_is_there() -> None:
    who = Asker("dataplane-x", "n1", "1-1")
    assert stranger(ASKS, who, "1-1") is None
    assert code(stranger(msgspec.structs.replace(ASKS, node="n2"), who, "2-2")) == "wrong-node"
    assert code(stranger(ASKS, who, "1-2")) == "another-node"
    missing = stranger(ASKS, who, None)
    assert missing == no_node("n1")
    assert missing is not None
    assert missing.retry


def test_what_an_account_says() -> None:
    assert standing({}, set()) == Standing(since=0, out=True)
    full = {"nats": {"imports": [{}], "revocations": {"*": 99}}}
    assert standing(full, {KEY}) == Standing(since=100, out=False, connected=frozenset({KEY}))
    assert standing({"nats": {"revocations": {"*": 99}}}, set()) == Standing(since=100, out=True)


STANDINGS = [
    Standing(since=since, out=out, connected=frozenset(connected))
    for since, out in ((0, True), (100, False), (100, True), (5000, False))
    for connected in ((), (KEY,), (OTHER,), (KEY, OTHER))
]


@pytest.mark.parametrize("replaces", ["", "beside", "now"])
@pytest.mark.parametrize("signed", [0, 50, 100, 200])
def test_of_every_state(replaces: str, signed: int) -> None:
    """A key in use ends only when that is asked for; what was signed before an account's second is never let in."""
    asks = msgspec.structs.replace(ASKS, replaces=replaces, jwt="x" if signed else "")
    for has, now in product(STANDINGS, (1000, 90)):
        decided = decide(asks, has, signed=signed, now=now)
        others = has.connected - {KEY}
        if isinstance(decided, Grant):
            assert decided.issued >= decided.since >= has.since, "no key of before comes back"
            if signed:
                assert decided == Grant(signed, signed)
            else:
                assert decided.issued > has.since
            ends = decided.since > has.since
            assert not (ends and others) or replaces == "now" or (replaces and has.out), (has, decided)
            if replaces == "beside" and not signed and has.since and not has.out:
                assert decided.since == has.since
        else:
            assert decided.code in ("void", "in-use")
            assert (decided.code == "void") == (0 < signed < has.since)
            assert decided.code == "void" or (others and replaces != "now")
            assert decided.retry is (bool(signed) and decided.code == "in-use")


def test_the_node_says_by_which_key_it_was_let_in() -> None:
    body = node_body("n1", "routing", KEY, 7)
    assert body["metadata"] == {"name": "n1", "annotations": {"airmesh.io/admitted-routing": f"{KEY} 7"}}
    assert admitted_at(msgspec.json.encode(body), "routing") == 7
    assert admitted_at(msgspec.json.encode(body), "dataplane") == 0


@pytest.mark.parametrize("text", ["", KEY, f"{KEY} ", f"{KEY} -7", f"{KEY} 7 8", f"{KEY} ٧", f"{KEY} {'9' * 13}"])
def test_what_a_node_says_wrongly_of_its_key_is_nothing(text: str) -> None:
    said = {"metadata": {"name": "n1", "annotations": {"airmesh.io/admitted-routing": text}}}
    assert admitted_at(msgspec.json.encode(said), "routing") == 0
