"""Who is let onto the bus: a node's agent, by what the API server says of the pod that asks.

Whoever asks has the bootstrap token, which every node has, so that token says nothing of who it is. The token of the
pod does: the API server gave it to a pod of the agents' ServiceAccount on that node, and to no other. A node can so ask
for itself alone, and only while its Node is there.

What holds between two askings stands on the bus and is read each time: the account that lets an agent in says since
when its keys are good, the servers say who is connected. A key that is in use is replaced by another only when that is
asked for: of two machines with one name, the second does not put the first one out.

Source: k8s.io/api authentication/v1 TokenReview; k8s.io/apiserver pkg/authentication/serviceaccount. Times are Unix
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import msgspec

from proto.admission import AUDIENCE, AdmissionRequest
from proto.annotations import ADMITTED
from services.cluster.core.parts import annotation
from services.cluster.core.shapes import NodeShape

ADMITTED_REASON, REFUSED_REASON = "AirmeshAdmitted", "AirmeshRefused"
"""Of Events on the Node."""
MAX_TOKEN = 8192
_NODE_NAME = "authentication.kubernetes.io/node-name"
_NODE_UID = "authentication.kubernetes.io/node-uid"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_LONGEST = 200
_DIGITS = 12
_PUBLIC = 56
"""Characters of a public nkey."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why not: one sentence with the remedy."""

    code: str
    sentence: str
    retry: bool = False
    """The same may be let in later, without a change of what it asks."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A pod, as the API server knows it."""

    pod: str
    node: str
    node_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the bus has of an agent."""

    since: int = 0
    """Keys that were signed from then on are good; 0: nobody has an account yet."""
    out: bool = True
    """Its account lets nobody in that could do anything."""
    connected: frozenset[str] = frozenset()
    """Public keys of who is connected."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The key is good, as of when it was signed; and from when on the account lets keys in."""

    issued: int
    since: int


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] | None = None


class _Status(msgspec.Struct):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    audiences: list[str] | None = None
    error: str = ""


class _Review(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


def review_body(token: str) -> Mapping[str, Any]:
    """What the API server is asked."""
    spec = {"token": token, "audiences": [AUDIENCE]}
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}


def malformed(asks: AdmissionRequest, roles: Set[str]) -> Denial | None:
    """What is wrong with the question itself. ``roles``: those of each node."""
    if asks.role not in roles:
        return Denial(
            "malformed", f"role: {_shown(asks.role)} is no agent of a node: ask for {', '.join(sorted(roles))}"
        )
    if len(asks.public) != _PUBLIC or not asks.public.startswith("U") or not asks.public.isalnum():
        return Denial("malformed", f"public: {_shown(asks.public)} is no public nkey of a user: make a key (U…)")
    if not 0 < len(asks.token) <= MAX_TOKEN:
        return Denial("malformed", f"token: give the token of the pod's ServiceAccount for {AUDIENCE}")
    return None


def asker(answer: bytes, account: str) -> Asker | Denial:
    """Who asks, by a TokenReview that the API server answered. ``account``: NAMESPACE:NAME of the ServiceAccount."""
    try:
        status = msgspec.json.decode(answer, type=_Review).status
    except msgspec.MsgspecError as error:
        return Denial(
            "unavailable", f"the API server's word on the token cannot be read: {error}; try again", retry=True
        )
    if not status.authenticated or AUDIENCE not in (status.audiences or ()):
        why = _shown(status.error) if status.error else f"it is no ServiceAccount's token for {AUDIENCE}"
        return Denial("token-refused", f"the API server does not take the pod's token ({why}): start the pod anew")
    if status.user.username != f"system:serviceaccount:{account}":
        who = _shown(status.user.username)
        return Denial("not-an-agent", f"the token is {who}'s: only pods of the ServiceAccount {account} are let in")
    extra = status.user.extra or {}
    node, uid, pod = (next(iter(extra.get(name) or ()), "") for name in (_NODE_NAME, _NODE_UID, _POD_NAME))
    if not node or not pod:
        return Denial(
            "not-bound",
            "the token names no pod on a node: mount it as a projected volume, and switch on the API server's feature "
            "ServiceAccountTokenPodNodeInfo (it is on since Kubernetes 1.30)",
        )
    return Asker(pod, node, uid)


def no_node(node: str) -> Denial:
    """It may come any moment."""
    return Denial(
        "no-node", f"there is no Node {_shown(node)}: it is let in once its kubelet has registered it", retry=True
    )


def stranger(asks: AdmissionRequest, who: Asker, uid: str | None) -> Denial | None:
    """Why the asker may not ask for this node. ``uid``: of the Node; None where there is none."""
    node = _shown(asks.node)
    if who.node != asks.node:
        return Denial(
            "wrong-node", f"pod {who.pod} is on node {who.node} and asks for node {node}: a node asks for itself alone"
        )
    if uid is None:
        return no_node(node)
    if who.node_uid and uid and who.node_uid != uid:
        return Denial(
            "another-node",
            f"pod {who.pod} was on a Node {node} that was deleted, and another has its name: delete the pod",
        )
    return None


def standing(account: Mapping[str, Any], connected: Set[str]) -> Standing:
    """By what the account of an agent says (the claims of its JWT; empty where there is none)."""
    said = account.get("nats") or {}
    ended = (said.get("revocations") or {}).get("*", 0)
    return Standing(
        since=int(ended) + 1 if account else 0,
        out=not said.get("imports"),
        connected=frozenset(connected),
    )


def decide(asks: AdmissionRequest, now_has: Standing, *, signed: int, now: int) -> Grant | Denial:
    """``signed``: when the JWT that was shown was signed for this key; 0 where none was."""
    others, node = now_has.connected - {asks.public}, _shown(asks.node)
    if signed:
        if signed < now_has.since:
            return Denial("void", f"this key of node {node} has ended: ask for another one")
        if others and asks.replaces != "now":
            return Denial("in-use", f"{asks.role} of node {node} is still connected by another key", retry=True)
        return Grant(signed, signed)
    if others and not asks.replaces:
        return Denial(
            "in-use",
            f"{asks.role} of node {node} is connected by another key: stop that agent, or the machine that has taken "
            f"this name; a new key for one that runs is made by `airmesh keys rotate --node {node}`",
        )
    issued = max(now, now_has.since + 1)
    beside = asks.replaces == "beside" and now_has.since and not now_has.out
    return Grant(issued, now_has.since if beside else issued)


def node_body(node: str, role: str, public: str, issued: int) -> Mapping[str, Any]:
    """Server-side apply body: by which key an agent of the node was let in, and when it was signed."""
    annotations = {f"{ADMITTED}{role}": f"{public} {issued}"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "annotations": annotations}}


def admitted_at(node: bytes, role: str) -> int:
    """When the key was signed that a Node says an agent was let in by; 0 where it says none. Raises MsgspecError."""
    shape = msgspec.json.decode(node, type=NodeShape)
    _, _, second = annotation(shape.metadata, f"{ADMITTED}{role}").partition(" ")
    return int(second) if second.isascii() and second.isdecimal() and len(second) <= _DIGITS else 0


def _shown(text: str) -> str:
    line = "".join(char if char.isprintable() else "?" for char in text[:_LONGEST])
    return line if len(text) <= _LONGEST else f"{line}…"
