"""Kubernetes YAML as people write it, turned into ``proto.objects`` for the tests of policy, and nothing else."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import yaml

from proto.identity import NamedPort
from proto.objects import (
    IPBlock,
    Labels,
    Namespace,
    NetworkPolicy,
    Peer,
    Pod,
    PolicyPort,
    PolicyRule,
    Requirement,
    Selector,
)

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}


def labels(pairs: dict[str, str] | None) -> Labels:
    return tuple(sorted((pairs or {}).items()))


def selector(tree: dict[str, Any] | None) -> Selector | None:
    if tree is None:
        return None
    return Selector(
        match_labels=labels(tree.get("matchLabels")),
        match_expressions=tuple(
            Requirement(entry["key"], entry["operator"], tuple(entry.get("values", ())))
            for entry in tree.get("matchExpressions", ())
        ),
    )


def peer(tree: dict[str, Any]) -> Peer:
    block = tree.get("ipBlock")
    return Peer(
        pod_selector=selector(tree.get("podSelector")),
        namespace_selector=selector(tree.get("namespaceSelector")),
        ip_block=block and IPBlock(ip_network(block["cidr"]), tuple(ip_network(e) for e in block.get("except", ()))),
    )


def port(tree: dict[str, Any]) -> PolicyPort:
    spoken = tree.get("port")
    return PolicyPort(
        protocol=PROTOCOLS[tree.get("protocol", "TCP")],
        port=spoken if isinstance(spoken, int) else None,
        port_name=spoken if isinstance(spoken, str) else None,
        end_port=tree.get("endPort"),
    )


def policy(tree: dict[str, Any], namespace: str = "x", name: str = "p") -> NetworkPolicy:
    """A NetworkPolicy from its ``spec``, with policyTypes defaulted as the API server does."""

    def rules(direction: str, side: str) -> tuple[PolicyRule, ...]:
        return tuple(
            PolicyRule(
                peers=tuple(peer(p) for p in rule.get(side, ())), ports=tuple(port(p) for p in rule.get("ports", ()))
            )
            for rule in tree.get(direction, ())
        )

    types = tree.get("policyTypes", ["Ingress", *(["Egress"] if "egress" in tree else [])])
    chosen = selector(tree.get("podSelector", {}))
    assert chosen is not None
    return NetworkPolicy(
        namespace=tree.get("namespace", namespace),
        name=tree.get("name", name),
        uid=f"{namespace}-{name}",
        pod_selector=chosen,
        applies_ingress="Ingress" in types,
        applies_egress="Egress" in types,
        ingress=rules("ingress", "from") if "Ingress" in types else (),
        egress=rules("egress", "to") if "Egress" in types else (),
        ignored_ingress=0 if "Ingress" in types else len(tree.get("ingress", ())),
        ignored_egress=0 if "Egress" in types else len(tree.get("egress", ())),
    )


def policies(text: str) -> list[NetworkPolicy]:
    """Policies of a YAML list of specs; each may name its ``namespace`` (x) and ``name`` (p0, p1, …)."""
    return [policy(tree, name=f"p{index}") for index, tree in enumerate(yaml.safe_load(text))]


def namespace(name: str, **more: str) -> Namespace:
    return Namespace(
        name=name, uid=f"uid-{name}", labels=labels({"kubernetes.io/metadata.name": name, "ns": name, **more})
    )


def pod(name: str, *addresses: Any, node: str = "n1", **fields: Any) -> Pod:
    """``pod("x/a", …)``: labels default to ``pod: a``."""
    space, _, short = name.partition("/")
    given = fields.pop("labels", {"pod": short})
    return Pod(
        namespace=space,
        name=short,
        uid=f"uid-{name}",
        node=node,
        labels=labels(given),
        addresses=addresses,
        **fields,
    )


def named(*ports: str) -> tuple[NamedPort, ...]:
    """``named("web:TCP:80")``."""
    parts = [entry.split(":") for entry in ports]
    return tuple(NamedPort(name, PROTOCOLS[protocol], int(number)) for name, protocol, number in parts)
