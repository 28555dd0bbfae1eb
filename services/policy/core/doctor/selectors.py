"""Checks of what a NetworkPolicy's selectors name: nothing, another namespace's pods, or pods that no policy is about.

A selector that matches nothing is no fault by itself: what it means may come later. It is one when labels that differ
by a slip are there, or when somebody asks for this very policy (``asked``). A policy that selects no pod has no peers
to speak of, so these are looked at only when it has.

Sources: networking/v1 NetworkPolicyPeer (a podSelector alone means the policy's own namespace; two entries of a list
are two peers), kubernetes.io/docs/concepts/services-networking/network-policies (host-network pods).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kit.selectors import EVERYTHING
from proto.findings import OBJECT, Expected, Finding, Fix, Observed, object_name
from proto.objects import NetworkPolicy, Peer, PolicyRule, Selector
from services.policy.core.doctor.nearest import Near, nearest, texts
from services.policy.core.doctor.population import Group, Population, counted

LABELS = "policy-labels"
NAMESPACE_LABELS = "policy-namespace-labels"
PEERS_APART = "policy-peers-apart"
PEER_ELSEWHERE = "policy-peer-elsewhere"
HOST_NETWORK = "policy-host-network"
CODES = (LABELS, NAMESPACE_LABELS, PEERS_APART, PEER_ELSEWHERE, HOST_NETWORK)


class PeerAt(NamedTuple):
    """A peer and where it stands in its object."""

    peer: Peer
    path: str
    """``spec.ingress[0].from[1]``."""


def name_of(policy: NetworkPolicy) -> str:
    """``NetworkPolicy shop/web``."""
    return object_name("NetworkPolicy", policy.namespace, policy.name)


def rules_of(policy: NetworkPolicy) -> Iterator[tuple[str, str, PolicyRule]]:
    """Each rule with its path and what its peers are called: ``spec.egress[0]``, ``to``."""
    for direction, side, rules in (("ingress", "from", policy.ingress), ("egress", "to", policy.egress)):
        for index, rule in enumerate(rules):
            yield f"spec.{direction}[{index}]", side, rule


def check(policy: NetworkPolicy, population: Population, *, asked: bool) -> Iterator[Finding]:
    """Faults of the policy's selectors."""
    if policy.stand_in:
        return
    subjects = population.selected(policy.pod_selector, (policy.namespace,))
    yield from _subject(policy, subjects, population, asked=asked)
    if not any(not group.host_network for group in subjects):
        return
    for path, side, rule in rules_of(policy):
        peers = [PeerAt(peer, f"{path}.{side}[{index}]") for index, peer in enumerate(rule.peers)]
        apart = _apart(policy, peers, population)
        if apart is not None:
            yield apart
            continue
        for at in peers:
            if at.peer.ip_block is None:
                yield from _peer(policy, at, population, asked=asked)


def _subject(
    policy: NetworkPolicy, subjects: Sequence[Group], population: Population, *, asked: bool
) -> Iterator[Finding]:
    selector, path = policy.pod_selector, "spec.podSelector"
    if not subjects:
        near = nearest(selector, (group.labels for group in population.of((policy.namespace,))))
        if near is not None or asked:
            yield _no_pod(policy, path, selector, near, population, (policy.namespace,))
        return
    if selector != EVERYTHING and all(group.host_network for group in subjects):
        yield _host_network(policy, path, subjects, "no policy applies to a pod on its node's own network")


def _peer(policy: NetworkPolicy, at: PeerAt, population: Population, *, asked: bool) -> Iterator[Finding]:
    home, peer = policy.namespace, at.peer
    namespaces = population.namespaces_of(peer, home)
    if not namespaces and peer.namespace_selector is not None:
        found = _no_namespace(policy, at, peer.namespace_selector, population, asked=asked)
        if found is not None:
            yield found
        return
    selector = peer.pod_selector or EVERYTHING
    groups = population.selected(selector, namespaces)
    if groups:
        if selector != EVERYTHING and all(group.host_network for group in groups):
            yield _host_network(
                policy, f"{at.path}.podSelector", groups, "a host-network pod sends with its node's address"
            )
        return
    near = nearest(selector, (group.labels for group in population.of(namespaces)))
    if near is not None and _is_named(policy, near.there):
        near = None
    elsewhere = population.selected(selector, population.namespaces) if near is None else []
    if elsewhere and peer.namespace_selector is None and asked:
        yield _elsewhere(policy, at, selector, elsewhere)
    elif near is not None or asked:
        yield _no_pod(policy, f"{at.path}.podSelector", selector, near, population, namespaces)


def _apart(policy: NetworkPolicy, peers: Sequence[PeerAt], population: Population) -> Finding | None:
    """Two peers of a list that were meant as one: a namespace's every pod is a peer, and a label is nobody's."""
    home = policy.namespace
    spaces = [at for at in peers if at.peer.namespace_selector is not None and at.peer.pod_selector is None]
    labels = [at for at in peers if at.peer.namespace_selector is None and at.peer.pod_selector is not None]
    for space in spaces:
        namespaces = population.namespaces_of(space.peer, home)
        for label in labels:
            selector = label.peer.pod_selector or EVERYTHING
            meant = population.selected(selector, (name for name in namespaces if name != home))
            if population.selected(selector, (home,)) or not meant:
                continue
            wide = list(population.of(namespaces))
            return Finding(
                code=PEERS_APART,
                fault="policy",
                about=name_of(policy),
                cause=(
                    f"{space.path} and {label.path} are two peers, of which either may match: every pod of "
                    f"{_listed(namespaces)} is allowed, where those with {texts(selector)} were meant"
                ),
                expected=Expected(f"one peer with both selectors: {counted(meant)}", name_of(policy)),
                observed=(
                    Observed("object", f"{space.path} names {counted(wide)}"),
                    Observed("object", f"{label.path} names {counted(())} in {home}, the policy's own namespace"),
                ),
                fixes=(edit(policy, f"take the dash before podSelector away, so that {space.path} has both"),),
                precedence=OBJECT,
            )
    return None


def _no_pod(
    policy: NetworkPolicy,
    path: str,
    selector: Selector,
    near: Near | None,
    population: Population,
    namespaces: Sequence[str],
) -> Finding:
    where = _listed(namespaces)
    effect = "the policy applies to nothing" if path == "spec.podSelector" else "this peer allows nobody"
    observed = [Observed("object", f"{path} ({texts(selector)}) selects no pod of {where}: {effect}")]
    hint = "no label there is near it"
    if near is not None:
        key, _, value = near.there.partition("=")
        having = population.selected(Selector(match_labels=((key, value),)), namespaces)
        hint = f"{counted(having)} there: {near.there}"
        observed.append(Observed("object", hint))
    wanted = f"set {near.there} in place of {near.written}" if near is not None else "name labels that pods have"
    return Finding(
        code=LABELS,
        fault="policy",
        about=name_of(policy),
        cause=f"{path} asks for {near.written if near else texts(selector)}, which no pod of {where} has; {hint}",
        expected=Expected(f"a pod of {where} with {texts(selector)}", name_of(policy)),
        observed=tuple(observed),
        fixes=(edit(policy, f"at {path} {wanted}"),),
        precedence=OBJECT,
    )


def _no_namespace(
    policy: NetworkPolicy, at: PeerAt, selector: Selector, population: Population, *, asked: bool
) -> Finding | None:
    near = nearest(selector, population.namespaces.values()) or _by_name(selector, population)
    if near is None and not asked:
        return None
    path = f"{at.path}.namespaceSelector"
    hint = "no label of a namespace is near it" if near is None else f"a namespace has {near.there}"
    wanted = f"set {near.there} in place of {near.written}" if near is not None else "name labels that a namespace has"
    return Finding(
        code=NAMESPACE_LABELS,
        fault="policy",
        about=name_of(policy),
        cause=f"{path} asks for {near.written if near else texts(selector)}, which no namespace has; {hint}",
        expected=Expected(f"a namespace with {texts(selector)}", name_of(policy)),
        observed=(
            Observed("object", f"{path} ({texts(selector)}) selects no namespace: this peer allows nobody"),
            *((Observed("object", hint),) if near is not None else ()),
        ),
        fixes=(edit(policy, f"at {path} {wanted}"),),
        precedence=OBJECT,
    )


def _by_name(selector: Selector, population: Population) -> Near | None:
    """A namespace whose name is the value that is asked for under another key."""
    if len(selector.match_labels) != 1 or selector.match_expressions:
        return None
    ((key, value),) = selector.match_labels
    if value not in population.namespaces:
        return None
    return Near(written=f"{key}={value}", there=f"kubernetes.io/metadata.name={value}", likeness=1.0)


def _elsewhere(policy: NetworkPolicy, at: PeerAt, selector: Selector, groups: Sequence[Group]) -> Finding:
    namespaces = sorted({group.namespace for group in groups})
    label = f"kubernetes.io/metadata.name: {namespaces[0]}"
    return Finding(
        code=PEER_ELSEWHERE,
        fault="policy",
        about=name_of(policy),
        cause=(
            f"{at.path} has no namespaceSelector, so it means pods of {policy.namespace} alone; those with "
            f"{texts(selector)} are in {', '.join(namespaces[:4])}"
        ),
        expected=Expected(f"a pod of {policy.namespace} with {texts(selector)}", name_of(policy)),
        observed=(
            Observed("object", f"{at.path} names no pod of {policy.namespace}"),
            Observed("object", f"{counted(groups)} with these labels elsewhere"),
        ),
        fixes=(edit(policy, f"at {at.path} add namespaceSelector: {{matchLabels: {{{label}}}}}"),),
        precedence=OBJECT,
    )


def _host_network(policy: NetworkPolicy, path: str, groups: Sequence[Group], why: str) -> Finding:
    return Finding(
        code=HOST_NETWORK,
        fault="policy",
        about=name_of(policy),
        cause=f"{path} selects host-network pods alone, and {why}",
        expected=Expected("a pod on the pod network", name_of(policy)),
        observed=(Observed("object", f"{counted(groups)} with hostNetwork: true, and no other"),),
        fixes=(
            Fix(
                command=f"kubectl -n {groups[0].namespace} get pods {groups[0].example} -o yaml  # spec.hostNetwork",
                risk="A pod that leaves its node's network has another address, and no port of the node.",
                on="cluster",
            ),
        ),
        precedence=OBJECT,
    )


def _listed(namespaces: Sequence[str]) -> str:
    return ", ".join(namespaces[:4]) + (" and others" if len(namespaces) > 4 else "")


def _is_named(policy: NetworkPolicy, label: str) -> bool:
    """Whether the policy names this label by a selector of its own: then it is no slip of another one."""
    key, _, value = label.partition("=")
    peers = (peer for _, _, rule in rules_of(policy) for peer in rule.peers)
    selectors = (policy.pod_selector, *(peer.pod_selector for peer in peers if peer.pod_selector is not None))
    return any((key, value) in one.match_labels for one in selectors)


def edit(policy: NetworkPolicy, what: str) -> Fix:
    """The policy's text changed by a person, as ``what`` says."""
    return edit_named(policy.namespace, policy.name, what)


def edit_named(namespace: str, name: str, what: str) -> Fix:
    """:func:`edit` of the NetworkPolicy of this name."""
    return Fix(
        command=f"kubectl -n {namespace} edit networkpolicy {name}  # {what}",
        risk="Whoever the policy then selects or allows is judged by it from the next connection on.",
        on="cluster",
    )
