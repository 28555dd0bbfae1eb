"""Checks of what a NetworkPolicy's ports name: a port name that no pod has, and rules that policyTypes leaves out.

A named port stands for the container port of that name and protocol on the pod that is connected to (networking/v1
NetworkPolicyPort); one that nobody has allows nothing. Rules of a direction that ``policyTypes`` does not list have no
effect at all (NetworkPolicySpec).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from proto.findings import OBJECT, Expected, Finding, Observed
from proto.identity import NamedPort
from proto.objects import NetworkPolicy, PolicyPort, PolicyRule
from services.policy.core.doctor.nearest import alike
from services.policy.core.doctor.population import Group, Population, counted
from services.policy.core.doctor.selectors import edit, name_of, rules_of
from services.policy.core.explain import PROTOCOL_NAMES

PORT_NAME = "policy-port-name"
TYPES = "policy-types"
CODES = (PORT_NAME, TYPES)


def check(policy: NetworkPolicy, population: Population, *, asked: bool) -> Iterator[Finding]:
    """Faults of the policy's ports and types."""
    yield from _types(policy)
    subjects = _pods(population.selected(policy.pod_selector, (policy.namespace,)))
    if not subjects:
        return
    for path, side, rule in rules_of(policy):
        having = subjects if side == "from" else _named_by(rule, population, policy.namespace)
        for index, port in enumerate(rule.ports):
            if port.port_name is not None and having:
                yield from _named(policy, f"{path}.ports[{index}].port", port, having, asked=asked)


def _types(policy: NetworkPolicy) -> Iterator[Finding]:
    for direction, ignored in (("Ingress", policy.ignored_ingress), ("Egress", policy.ignored_egress)):
        if not ignored:
            continue
        section = f"spec.{direction.lower()}"
        has = [
            one for one, applies in (("Ingress", policy.applies_ingress), ("Egress", policy.applies_egress)) if applies
        ]
        yield Finding(
            code=TYPES,
            fault="policy",
            about=name_of(policy),
            cause=f"{section} has rules, and spec.policyTypes does not list {direction}: they have no effect",
            expected=Expected(f"spec.policyTypes with {direction}", name_of(policy)),
            observed=(
                Observed("object", f"spec.policyTypes: [{', '.join(has)}]"),
                Observed("object", f"{section}: {ignored} rule{'s' if ignored > 1 else ''}"),
            ),
            fixes=(edit(policy, f"add {direction} to spec.policyTypes"),),
            precedence=OBJECT,
        )


def _named(
    policy: NetworkPolicy, path: str, port: PolicyPort, groups: Iterable[Group], *, asked: bool
) -> Iterator[Finding]:
    them = list(groups)
    ports = {one for group in them for one in group.ports}
    if any(one.name == port.port_name and one.protocol == port.protocol for one in ports):
        return
    written = f"{port.port_name}/{PROTOCOL_NAMES[port.protocol]}"
    near = _nearest(port, ports)
    if near is None and not asked:
        return
    names = ", ".join(f"{one.name}/{PROTOCOL_NAMES[one.protocol]} ({one.port})" for one in sorted(ports)[:8])
    wanted = "name a container port" if near is None else f"set {near.name}, protocol {PROTOCOL_NAMES[near.protocol]}"
    yield Finding(
        code=PORT_NAME,
        fault="policy",
        about=name_of(policy),
        cause=f"{path} names {written}, which no container port of {counted(them)} is called: it allows nothing",
        expected=Expected(f"a container port {written}", name_of(policy)),
        observed=(Observed("object", f"named ports there: {names or 'none'}"),),
        fixes=(edit(policy, f"at {path} {wanted}"),),
        precedence=OBJECT,
    )


def _nearest(port: PolicyPort, ports: Iterable[NamedPort]) -> NamedPort | None:
    """What was meant: the same name of another protocol, or a name that differs by a slip."""
    name = port.port_name or ""
    near = [(1.0 if one.name == name else alike(name, one.name), one) for one in sorted(ports)]
    likeness, best = max(near, default=(0.0, None), key=lambda one: one[0])
    return best if likeness else None


def _pods(groups: Iterable[Group]) -> list[Group]:
    return [group for group in groups if not group.host_network]


def _named_by(rule: PolicyRule, population: Population, home: str) -> list[Group]:
    """Groups that the rule's peers name; all there are for a rule without peers."""
    if not rule.peers:
        return _pods(population.everywhere())
    return _pods(group for peer in rule.peers for group in population.peers(peer, home))
