"""The page of decisions (docs/fields.md) and the schemas that it has to be whole for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from services.cluster.core import bgp_shapes, node_status_shapes, shapes

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "fields.md"
API = Path(__file__).parent / "api.txt"
"""Group, type and fields, a type a line: the OpenAPI of Kubernetes."""
CRDS = ROOT / "deploy" / "kubernetes" / "crds"
ANY_OTHER = "*"
"""Stands for every field that an API server keeps although the schema does not name it."""
WORDS = ("honoured", "others'", "refused", "told")

Field = tuple[str, str]
"""API type and field, or kind and annotation."""

_ROW = re.compile(r"\| (?P<type>\w+) \| (?P<fields>`[^|]+`) \| (?P<word>[^|]+) \| (?P<how>[^|]*)\|")
_TYPE = re.compile(r"(?P<group>\S+)/v1 (?P<types>\w+(?: and \w+)*)")


def decisions() -> Iterator[tuple[Field, str]]:
    """Every row of the page: field and what becomes of it."""
    for line in PAGE.read_text().splitlines():
        if found := _ROW.fullmatch(line):
            for field in re.findall(r"`([^`]+)`", found["fields"]):
                yield (found["type"], field), found["word"]
        else:
            assert not line.startswith("| ") or line.startswith("| type "), f"not a row: {line}"


def is_annotation(field: Field) -> bool:
    """Annotations are named with a domain, fields are not."""
    return "/" in field[1]


def of_the_api() -> set[Field]:
    """Every field of every type that is read, as Kubernetes has them."""
    lines = [line.partition(": ") for line in API.read_text().splitlines()]
    return {(name.split()[1], field) for name, _, fields in lines for field in fields.split()}


RULE = {
    "prefixLength": "BGPFilterPrefixLength",
    "communities": "BGPFilterCommunityMatch",
    "operations": "BGPFilterOperation",
}
PARTS: dict[Field, str] = {
    ("BGPConfigurationSpec", "communities"): "Community",
    ("BGPConfigurationSpec", "prefixAdvertisements"): "PrefixAdvertisement",
    ("BGPConfigurationSpec", "nodeMeshPassword"): "BGPPassword",
    ("BGPConfigurationSpec", "serviceClusterIPs"): "ServiceClusterIPBlock",
    ("BGPConfigurationSpec", "serviceExternalIPs"): "ServiceExternalIPBlock",
    ("BGPConfigurationSpec", "serviceLoadBalancerIPs"): "ServiceLoadBalancerIPBlock",
    ("BGPPeerSpec", "password"): "BGPPassword",
    **{
        ("BGPFilterSpec", f"{way}V{family}"): f"BGPFilterRuleV{family}"
        for way in ("import", "export")
        for family in "46"
    },
    **{
        (f"BGPFilterRuleV{family}", field): name + (f"V{family}" if field == "prefixLength" else "")
        for field, name in RULE.items()
        for family in "46"
    },
    ("CalicoNodeStatusStatus", "agent"): "CalicoNodeAgentStatus",
    ("CalicoNodeStatusStatus", "bgp"): "CalicoNodeBGPStatus",
    ("CalicoNodeStatusStatus", "routes"): "CalicoNodeBGPRouteStatus",
    **{("CalicoNodeAgentStatus", f"birdV{family}"): "BGPDaemonStatus" for family in "46"},
    **{("CalicoNodeBGPStatus", f"peersV{family}"): "CalicoNodePeer" for family in "46"},
    **{("CalicoNodeBGPRouteStatus", f"routesV{family}"): "CalicoNodeRoute" for family in "46"},
    ("CalicoNodeRoute", "learnedFrom"): "CalicoNodeRouteLearnedFrom",
    ("BGPFilterOperation", "addCommunity"): "BGPFilterAddCommunity",
    ("BGPFilterOperation", "prependASPath"): "BGPFilterPrependASPath",
    ("BGPFilterOperation", "setPriority"): "BGPFilterSetPriority",
}
"""Fields of the CRDs that are objects, or lists of them, and Calico's name of their type."""


def fields_of(name: str, schema: Mapping[str, Any]) -> Iterator[Field]:
    """Fields of a type and of all its parts."""
    for field, part in schema.get("properties", {}).items():
        yield name, field
        if (name, field) in PARTS:
            yield from fields_of(PARTS[name, field], part.get("items", part))
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        yield name, ANY_OTHER


def of_the_crd() -> set[Field]:
    """Every field of Calico's kinds."""
    found: set[Field] = set()
    for path in sorted(CRDS.glob("*s.yaml")):
        written = yaml.safe_load(path.read_text())["spec"]
        kind, (version,) = written["names"]["kind"], written["versions"]
        schema: Mapping[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
        found |= {(kind, field) for field in schema}
        for part in schema.keys() & {"spec", "status"}:
            found |= set(fields_of(kind + part.capitalize(), schema[part]))
    return found


def types_of(shape: type[msgspec.Struct]) -> tuple[str, ...]:
    """API types that a shape reads: its docstring names them."""
    found = _TYPE.match(shape.__doc__ or "")
    assert found is not None, f"{shape.__name__}: its docstring names no type of the API"
    return tuple(found["types"].split(" and "))


def of_the_code() -> set[Field]:
    """Every field that ``services.cluster.core.shapes`` decodes."""
    bases = (shapes.Shape, shapes.Strict)
    named = {**vars(shapes), **vars(bgp_shapes), **vars(node_status_shapes)}
    kinds = [one for one in named.values() if isinstance(one, type) and issubclass(one, bases)]
    kept = {(f"{kind}Spec", ANY_OTHER) for kind in ("FelixConfiguration", "BGPConfiguration", "BGPPeer")}
    return kept | {
        (name, field.encode_name)
        for shape in kinds
        if shape not in bases
        for name in types_of(shape)
        for field in msgspec.structs.fields(shape)
    }


def in_openapi(documents: Iterator[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Fields by ``group/v1 Type``, from what an API server serves under ``/openapi/v3``."""
    found = {}
    for document in documents:
        for name, schema in document["components"]["schemas"].items():
            match name.split("."):
                case ["io", "k8s", "api", group, "v1", kind]:
                    found[f"{group}/v1 {kind}"] = set(schema.get("properties", ()))
                case ["io", "k8s", "apimachinery", "pkg", "apis", "meta", "v1", kind]:
                    found[f"meta/v1 {kind}"] = set(schema.get("properties", ()))
                case _:
                    pass
    return found
