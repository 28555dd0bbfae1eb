"""YAML files of Kubernetes objects into the mesh's types, for whoever reads a policy without an API server.

Promises what kubectl does with the same text: YAML 1.1 booleans, no dates, duplicate keys refused, a ``List`` taken
apart. Refuses text over 1 MiB, nesting deeper than 32 and aliases (a few lines of them unfold to gigabytes). Kinds that
the mesh does not look at are told as warnings, one sentence each; a broken document or object is :class:`Malformed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from proto.objects import KubernetesObject
from services.cluster.core.malformed import Malformed, quote
from services.cluster.core.parse import kind_of, parse

MAX_TEXT = 1 << 20
MAX_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, dates, duplicate keys and deep nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def refuse(self, why: str) -> yaml.YAMLError:
        """The error for what begins here."""
        return yaml.YAMLError(f"line {self.line + 1}: {why}")

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, or refuse it."""
        if self.check_event(yaml.AliasEvent):
            raise self.refuse("an alias (*); write the value out")
        if self.depth >= MAX_DEPTH:
            raise self.refuse(f"nested deeper than {MAX_DEPTH}; flatten it")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, or refuse it for a key that stands there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            text = key.value if isinstance(key, yaml.ScalarNode) else None
            line = key.start_mark.line + 1
            if text is None:
                raise yaml.YAMLError(f"line {line}: a key that is no word; write text before the colon")
            if text in seen:
                raise yaml.YAMLError(f"line {line}: the key {text!r} stands there twice; remove one")
            seen.add(text)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_manifest(text: str) -> tuple[tuple[KubernetesObject, ...], tuple[str, ...]]:
    """Objects of a YAML text in its order, and warnings. Raises :class:`Malformed` for the first fault."""
    objects: list[KubernetesObject] = []
    warnings: list[str] = []
    for written in _written(text):
        kind = kind_of(written.get("apiVersion"), written.get("kind"))
        if kind is None:
            warnings.append(_passed_over(written, "is a kind that airmesh does not look at"))
            continue
        value = parse(kind, written, live=False)
        if value is None:
            warnings.append(_passed_over(written, "is none that airmesh looks at"))
        else:
            objects.append(value)
    return tuple(objects), tuple(warnings)


def _written(text: str) -> Iterator[Mapping[str, Any]]:
    for index, document in enumerate(_documents(text)):
        if document is None:
            continue
        whole = isinstance(document, dict)
        if whole and document.get("kind") == "List" and isinstance(document.get("items"), list):
            entries = document["items"]
        else:
            entries = [document]
        for entry in entries:
            if not isinstance(entry, dict):
                problem = f"{type(entry).__name__} where an object should be"
                remedy = "write apiVersion, kind, metadata and spec"
                raise Malformed(kind="document", name=str(index + 1), path="", problem=problem, remedy=remedy)
            for field in ("apiVersion", "kind"):
                if not isinstance(entry.get(field), str):
                    problem = "is missing or no text"
                    remedy = "write e.g. apiVersion: v1 and kind: Pod"
                    raise Malformed(kind="document", name=str(index + 1), path=field, problem=problem, remedy=remedy)
            yield entry


def _documents(text: str) -> list[Any]:
    if len(text) > MAX_TEXT:
        problem = f"{len(text)} characters, more than {MAX_TEXT}"
        raise Malformed(kind="manifest", name="?", path="", problem=problem, remedy="split the file")
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = "is not YAML: " + " ".join(str(error).split())[:200]
        remedy = "mend the line that is named"
        raise Malformed(kind="manifest", name="?", path="", problem=problem, remedy=remedy) from None


def _passed_over(written: Mapping[str, Any], why: str) -> str:
    metadata = written.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{written.get('kind')} {quote(name)} of {written.get('apiVersion')}: {why}; passed over"
