"""Which change came before a finding: one of what it names, else one of what such a fault may come from."""

from __future__ import annotations

import pytest

from kit.changes import Changed, changed, just_before
from proto.codec import object_key
from proto.findings import Expected, Fault, Finding
from proto.objects import EndpointSlice, IPPool, Pod, Service
from tests.golden.proto.samples import sample_of


def finding(about: str, fault: Fault = "service", *, wanted: str = "", affects: tuple[str, ...] = ()) -> Finding:
    return Finding(
        code="c",
        fault=fault,
        about=about,
        cause="so",
        expected=Expected(text="this", object=wanted),
        observed=(),
        fixes=(),
        affects=affects,
    )


def written(kind: str, name: str, revision: int = 1, *, removed: bool = False, service: str = "") -> Changed:
    namespace, _, rest = name.rpartition("/")
    return Changed(kind=kind, namespace=namespace, name=rest, revision=revision, removed=removed, service=service)


@pytest.mark.parametrize("kind", [Service, Pod, IPPool, EndpointSlice])
def test_a_key_says_which_object_it_is(kind: type) -> None:
    value = sample_of(kind)
    one = changed(object_key(value), value, 812)
    assert one is not None
    assert (one.kind, one.namespace, one.name) == (kind.__name__, getattr(value, "namespace", ""), value.name)
    assert (one.revision, one.removed) == (812, False)
    assert one.service == (value.service if kind is EndpointSlice else "")
    gone = changed(object_key(value), None, 813)
    assert gone is not None
    assert (gone.about, gone.removed) == (one.about, True)


@pytest.mark.parametrize(
    "key", ["_epoch", "core.service", "core.unknown.shop.web", "a=ZZ.b.c.d", "core.service.a.b.c.d"]
)
def test_a_key_of_no_object_is_passed_over(key: str) -> None:
    assert changed(key, None, 1) is None


WEB = written("Service", "shop/web", 5)


@pytest.mark.parametrize(
    ("of", "changes", "said"),
    [
        (finding("Service shop/web"), [WEB], "Service shop/web was written (sequence 5 of objects)"),
        (finding("Node n1", wanted="Service shop/web"), [WEB], "Service shop/web was written (sequence 5 of objects)"),
        (finding("Node n1", affects=("Service shop/web",)), [WEB], WEB.about + " was written (sequence 5 of objects)"),
        (finding("Service shop/db"), [WEB], ""),
        (
            finding("Service shop/web"),
            [WEB, written("EndpointSlice", "shop/web-1", 7, service="web"), written("Pod", "shop/web-x", 9)],
            "Service shop/web was written (sequence 5 of objects)",
        ),
        (
            finding("Service shop/web"),
            [written("EndpointSlice", "shop/web-1", 7, service="web"), written("Pod", "shop/web-x", 9)],
            "EndpointSlice shop/web-1 was written (sequence 7 of objects)",
        ),
        (
            finding("Service shop/web"),
            [written("Pod", "shop/web-x", 9, removed=True), written("Pod", "other/web", 11)],
            "Pod shop/web-x was removed (sequence 9 of objects)",
        ),
        (
            finding("Pair n1 n2", "nodes-apart"),
            [written("Node", "n2", 3), written("IPPool", "default", 8), written("Node", "n3", 9)],
            "Node n2 was written (sequence 3 of objects)",
        ),
        (
            finding("Pair n1 n2", "nodes-apart"),
            [written("IPPool", "default", 8), written("Service", "shop/web", 9)],
            "IPPool default was written (sequence 8 of objects)",
        ),
        (
            finding("NetworkPolicy shop/deny", "policy"),
            [written("Namespace", "other", 4), written("NetworkPolicy", "other/deny", 5)],
            "Namespace other was written (sequence 4 of objects)",
        ),
        (finding("Node n1", "nodes-apart"), [], ""),
    ],
)
def test_the_change_before(of: Finding, changes: list[Changed], said: str) -> None:
    assert just_before(of, changes) == said
    assert just_before(of, reversed(changes)) == said
