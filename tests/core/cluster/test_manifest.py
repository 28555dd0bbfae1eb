"""YAML files of objects: read as kubectl reads them, bounded, with one error for what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.objects import IPPool, NetworkPolicy, Pod
from services.cluster.core.malformed import Malformed
from services.cluster.core.manifest import MAX_TEXT, parse_manifest

ROOT = Path(__file__).parents[3]
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: prod}
spec: {podSelector: {}}
"""


def test_documents_in_order_and_lists_taken_apart() -> None:
    objects, warnings = parse_manifest(
        POLICY
        + """
---
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {}}
- {apiVersion: crd.projectcalico.org/v1, kind: IPPool, metadata: {name: b}, spec: {cidr: 10.0.0.0/16}}
"""
    )
    assert [type(one) for one in objects] == [NetworkPolicy, Pod, IPPool]
    assert warnings == ()


def test_kinds_that_the_mesh_does_not_look_at_are_told_once_each() -> None:
    objects, warnings = parse_manifest("""
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {}
""")
    assert objects == ()
    assert warnings == (
        "StatefulSet 'db' of apps/v1: is a kind that airmesh does not look at; passed over",
        "Deployment 'web' of apps/v1: is none that airmesh looks at; passed over",
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: b: c", "is not YAML"),
        ("a: [", "is not YAML"),
        ("a: &x 1\nb: *x", "line 2: an alias"),
        ("a: {<<: {b: 1}}\nkind: x", "apiVersion: is missing"),
        ("a: 1\na: 2", "line 2: the key 'a' stands there twice"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
        ("{" * 5000, "nested deeper than 32"),
        ("- 1", "list where an object should be"),
        ("just words", "str where an object should be"),
        ("kind: Pod", "apiVersion: is missing"),
        ("apiVersion: v1", "kind: is missing"),
        ("apiVersion: 1\nkind: Pod", "apiVersion: is missing or no text"),
        ("? [a]\n: b", "a key that is no word"),
        ("a: \x00", "is not YAML"),
        ("a: !!python/object:os.system {}", "is not YAML"),
        ("#" * (MAX_TEXT + 1), "split the file"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}", "Pod x: object missing required field spec"),
        ("apiVersion: v1\nkind: Pod\nmetadata: [x]\nspec: {}", "metadata: expected object"),
        (POLICY + "---\n" + POLICY.replace("podSelector", "podselector"), "unknown field podselector"),
    ],
)
def test_one_clear_error(text: str, part: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_manifest(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["2020-01-01", "1:30", "0o17", "12e3", "yes"])
def test_scalars_never_become_dates(value: str) -> None:
    text = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: x, labels: {{a: '{value}'}}}}"
    (found,), _ = parse_manifest(text)
    assert found.labels == (("a", value),)  # type: ignore[union-attr]
    if value == "2020-01-01":
        assert parse_manifest(text.replace("'", ""))[0][0].labels == (("a", value),)  # type: ignore[union-attr]


@given(st.text(max_size=300))
def test_no_text_does_anything_but_parse_or_be_malformed(text: str) -> None:
    try:
        parse_manifest(text)
    except Malformed as fault:
        assert "\n" not in str(fault)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_understood(path: Path) -> None:
    parse_manifest(path.read_text())


@pytest.mark.parametrize("name", ["airmesh.yaml", "pools.yaml"])
def test_the_lab_s_own_manifests_are_understood(name: str) -> None:
    parse_manifest((ROOT / "lab" / "manifests" / name).read_text())
