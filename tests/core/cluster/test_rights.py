"""What `cluster` may do with the API is what it does: each call in its code, held against the roles of the manifests.

`CALLS` says what each place in the code that speaks to the API asks for. A new call has no entry and fails here; an
entry of a call that is gone fails, too. The roles (deploy/kubernetes) must grant exactly that, and stand in a golden
file (`tests/golden/rbac.txt`), so that whoever widens them sees it twice.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from proto.objects import KIND_OF, KINDS, IPPool
from services.cluster.core import pools, reports
from services.cluster.core.spellings import AGAIN
from services.cluster.feed import source_of
from tests.house.tree import parsed

ROOT = Path(__file__).parents[3]
ROLES = ROOT / "deploy" / "kubernetes" / "rbac.yaml"
GOLDEN = ROOT / "tests" / "golden" / "rbac.txt"

Right = tuple[str, str, str, str]
"""Namespace (empty: cluster-wide), resource as group/plural[/subresource], name (empty: any), verb."""

WATCHED: frozenset[Right] = frozenset(
    (
        path.split("/namespaces/")[1].split("/")[0] if "/namespaces/" in path else "",
        f"{'' if kind.group == 'core' else kind.group}/{kind.plural}",
        fields.removeprefix("metadata.name="),
        verb,
    )
    for kind in (*KINDS, *AGAIN)
    for path, fields in [source_of(kind)]
    for verb in ("list", "watch")
)

CALLS: dict[str, frozenset[Right]] = {
    "feed.py:_list:page": frozenset(right for right in WATCHED if right[3] == "list"),
    "feed.py:_follow:watch": frozenset(right for right in WATCHED if right[3] == "watch"),
    "doctor.py:check:page": frozenset({("", "/events", "", "list")}),
    "admission.py:_admit:ask": frozenset({("", "authentication.k8s.io/tokenreviews", "", "create")}),
    "admission.py:_annotate:apply": frozenset({("", "/nodes", "", "patch")}),
    "admission.py:say_on_node:create": frozenset({("", "/events", "", "create")}),
    # Server-side apply of an Event that is not there yet makes it.
    "object_faults.py:_write:apply": frozenset({("", "/events", "", "patch"), ("", "/events", "", "create")}),
    "conditions.py:_bring:apply": frozenset(
        {("", f"/{plural}/status", "", "patch") for plural in ("nodes", "pods", "services")}
    ),
    "writeback.py:_write_blocks:apply": frozenset({("", "/nodes", "", "patch")}),
    "writeback.py:_write_taint:merge": frozenset({("", "/nodes", "", "patch")}),
    "writeback.py:_write_condition:apply": frozenset({("", "/nodes/status", "", "patch")}),
    "writeback.py:_write:apply": frozenset(
        {("", f"{group}/ippools/status", "", "patch") for group in ("crd.projectcalico.org", "projectcalico.org")}
    ),
    "node_status.py:_write:apply": frozenset(
        {
            ("", f"{group}/caliconodestatuses/status", "", "patch")
            for group in ("crd.projectcalico.org", "projectcalico.org")
        }
    ),
    "writeback.py:apply:apply": frozenset(
        {("kube-system", "/configmaps", "coredns", "patch"), ("kube-system", "apps/deployments", "coredns", "patch")}
    ),
    "writeback.py:_report:create": frozenset({("", "/events", "", "create")}),
}


def calls() -> Iterator[str]:
    """Every place that speaks to the API: file, function and method of `Kube`."""
    for path in sorted((ROOT / "services" / "cluster").rglob("*.py")):
        for function in ast.walk(parsed(path.read_text())):
            if not isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("self._kube.", "kube.")):
                    method = ast.unparse(node.func).rpartition(".")[2]
                    if method not in ("open", "close"):
                        yield f"{path.name}:{function.name}:{method}"


def granted() -> dict[str, set[Right]]:
    """Rights by service account, as the manifests bind them."""
    objects: list[dict[str, Any]] = [one for one in yaml.safe_load_all(ROLES.read_text()) if one]
    roles = {(one["kind"], one["metadata"]["name"]): one for one in objects if one["kind"].endswith("Role")}
    found: dict[str, set[Right]] = defaultdict(set)
    for binding in (one for one in objects if one["kind"].endswith("RoleBinding")):
        role = roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        namespace = role["metadata"].get("namespace", "")
        assert namespace == binding["metadata"].get("namespace", "")
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount"
            found[subject["name"]] |= {
                (namespace, f"{group}/{resource}", name, verb)
                for rule in role["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for name in rule.get("resourceNames", [""])
                for verb in rule["verbs"]
            }
    return dict(found)


def test_every_call_of_the_code_is_known() -> None:
    assert set(calls()) == set(CALLS)


def test_the_roles_grant_what_the_code_calls_and_nothing_else() -> None:
    needed = set().union(*CALLS.values())
    assert {account: rights ^ needed for account, rights in granted().items()} == {"cluster": set()}


def test_the_paths_written_to_are_those_that_are_granted() -> None:
    event = reports.event_path(reports.Report(kind=KINDS[0], namespace="a", name="b", uid="", sentence="c"))
    assert event == "/api/v1/namespaces/a/events"
    paths = {pools.condition_path(kind, "p") for kind in (KIND_OF[IPPool], *AGAIN) if kind.type is IPPool}
    groups = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
    assert paths == {f"/apis/{group}/ippools/p/status" for group in groups}


def test_rights_are_written_down(update_golden: bool) -> None:
    lines = [
        f"{account}: {verb} {resource}{f' {name}' if name else ''}{f' in {namespace}' if namespace else ''}"
        for account, rights in sorted(granted().items())
        for namespace, resource, name, verb in sorted(rights)
    ]
    text = "\n".join(lines) + "\n"
    if update_golden:
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_nobody_gets_a_wildcard_or_a_secret() -> None:
    for rights in granted().values():
        for right in rights:
            assert "*" not in "".join(right)
            assert "secrets" not in right[1]
