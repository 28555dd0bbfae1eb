"""BGPFilter, as it is read: rules in their order, each with all that it matches and does.

Promises that a rule is read whole or the filter is refused: a criterion that is left out would let more routes match.
A rule of the other family, an operator without a range, lengths without a range, operations of a route that is rejected
are no rules; nor is ``priority`` as a criterion, since routes carry no metric between peers.

Source: crd.projectcalico.org/v1 BGPFilterSpec (Calico 3.32).
"""

from __future__ import annotations

from proto.net import Family, Network
from proto.objects import BGPFilter, BGPFilterRule, Community
from services.cluster.core.bgp_parts import asn, community
from services.cluster.core.bgp_shapes import BGPFilterShape, OperationShape, RuleShape
from services.cluster.core.malformed import Wrong
from services.cluster.core.parts import network

_BITS = {4: 32, 6: 128}


def bgp_filter(shape: BGPFilterShape) -> BGPFilter:
    """crd.projectcalico.org/v1 BGPFilter; raises :class:`Wrong`."""
    spec = shape.spec
    return BGPFilter(
        name=shape.metadata.name,
        import_v4=_rules(spec.import_v4, "importV4", 4),
        import_v6=_rules(spec.import_v6, "importV6", 6),
        export_v4=_rules(spec.export_v4, "exportV4", 4),
        export_v6=_rules(spec.export_v6, "exportV6", 6),
    )


def _rules(listed: list[RuleShape] | None, field: str, family: Family) -> tuple[BGPFilterRule, ...]:
    return tuple(_rule(one, f"spec.{field}[{index}]", family) for index, one in enumerate(listed or ()))


def _rule(shape: RuleShape, path: str, family: Family) -> BGPFilterRule:
    if bool(shape.cidr) != bool(shape.match_operator):
        missing, there = ("matchOperator", "cidr") if shape.cidr else ("cidr", "matchOperator")
        raise Wrong(f"{path}.{missing}", f"is missing beside {there}", "write both, or none of them")
    if shape.source and path.startswith("spec.import"):
        raise Wrong(f"{path}.source", "is there in a rule of import", "remove it: what is imported comes from a peer")
    if shape.operations and shape.action == "Reject":
        raise Wrong(f"{path}.operations", "stands in a rule that rejects", "remove it, or write action Accept")
    added, prepended, priority = _operations(shape.operations or (), path)
    cidr = _range(shape.cidr, f"{path}.cidr", family) if shape.cidr else None
    return BGPFilterRule(
        action=shape.action,
        cidr=cidr,
        operator=shape.match_operator or "In",
        lengths=_lengths(shape, cidr, f"{path}.prefixLength", family),
        source=shape.source or "",
        interface=shape.interface or "",
        peer_type=shape.peer_type or "",
        communities=_communities(shape, f"{path}.communities"),
        as_path_prefix=tuple(asn(n, f"{path}.asPathPrefix[{i}]") for i, n in enumerate(shape.as_path_prefix or ())),
        add_communities=added,
        prepend=prepended,
        priority=priority,
    )


def _communities(shape: RuleShape, path: str) -> tuple[Community, ...]:
    values = shape.communities.values if shape.communities else ()
    return tuple(community(text, f"{path}.values[{index}]") for index, text in enumerate(values))


def _range(text: str, path: str, family: Family) -> Network:
    found = network(text, path, strict=False)
    if found.version != family:
        raise Wrong(path, f"{found} is not of IPv{family}", f"put the rule into the list of IPv{found.version}")
    return found


def _lengths(shape: RuleShape, cidr: Network | None, path: str, family: Family) -> tuple[int, int] | None:
    """What is not said is the range's own length and the longest of the family."""
    lengths = shape.prefix_length
    if lengths is None or (lengths.min is None and lengths.max is None):
        return None
    if cidr is None:
        raise Wrong(path, "is there without cidr", "write cidr and matchOperator too, e.g. 0.0.0.0/0 and In")
    most = _BITS[family]
    for name, value in (("min", lengths.min), ("max", lengths.max)):
        if value is not None and value > most:
            raise Wrong(f"{path}.{name}", f"{value} is out of range", f"use 0 to {most} for IPv{family}")
    low = cidr.prefixlen if lengths.min is None else lengths.min
    high = most if lengths.max is None else lengths.max
    if low > high:
        raise Wrong(path, f"{low} to {high} is no range", "use a min that is at most max")
    return low, high


def _operations(
    listed: list[OperationShape] | tuple[()], path: str
) -> tuple[tuple[Community, ...], tuple[int, ...], int | None]:
    """Communities that are added, the AS numbers that stand before the path afterwards, and the metric."""
    added: list[Community] = []
    prepended: tuple[int, ...] = ()
    priority: int | None = None
    for index, one in enumerate(listed):
        where = f"{path}.operations[{index}]"
        if sum(each is not None for each in (one.add_community, one.prepend_as_path, one.set_priority)) != 1:
            remedy = "write exactly one of addCommunity, prependASPath and setPriority in each"
            raise Wrong(where, "is not one operation", remedy)
        if one.add_community is not None:
            added.append(community(one.add_community.value, f"{where}.addCommunity.value"))
        elif one.prepend_as_path is not None:
            numbers = one.prepend_as_path.prefix
            first = tuple(asn(n, f"{where}.prependASPath.prefix[{i}]") for i, n in enumerate(numbers))
            prepended = first + prepended
        elif one.set_priority is not None:
            priority = one.set_priority.value
    return tuple(dict.fromkeys(added)), prepended, priority
