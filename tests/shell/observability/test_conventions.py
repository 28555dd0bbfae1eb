"""Names of spans, their events and attributes: docs/telemetry.md has all that the code makes, by OpenTelemetry's names.

https://opentelemetry.io/docs/specs/semconv/general/naming: lower case, dots between namespaces; what has no convention
has the prefix of who made it. Names of metrics are held to their table by ``test_rules.py``.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from opentelemetry.semconv import _incubating

from chassis.telemetry.traces import Telemetry
from tests.house.tree import parsed
from tests.shell.observability.test_rules import metrics

ROOT = Path(__file__).resolve().parents[3]
MANUAL = ROOT / "docs" / "telemetry.md"
NOT_ATTRIBUTES = {"links", "waited", "kind", "alone"}
"""What ``Telemetry.span`` and ``together`` take beside them."""
GIVEN = re.compile(r"[a-z][a-z0-9]*(__[a-z][a-z0-9_]*?)+")
"""An attribute as the code gives it: two underscores stand for a dot."""
MARKED = re.compile(
    r"telemetry\.(span|together)\(|\bspan\.(event|set)\(|(k8s|airmesh|container|messaging)__|error\.type"
)
NAME = re.compile(r"[a-z][a-z0-9]*(\.[a-z][a-z0-9]*(_[a-z0-9]+)*)+")
NO_CONVENTION = {"k8s.object.kind", "k8s.object.name"}
"""Of OpenTelemetry's own collector (its receiver of Kubernetes' events), and of no convention yet."""


def table(head: str) -> dict[str, list[str]]:
    """Names in the first column of the manual's table whose first heading this is, with the other cells."""
    lines = iter(MANUAL.read_text().splitlines())
    next(line for line in lines if line.startswith(f"| {head} |"))
    next(lines)
    found: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        first, *others = (cell.strip() for cell in line.strip("|").split("|"))
        found |= dict.fromkeys(re.findall(r"`([^`{]+)[^`]*`", first), others)
    assert found, head
    return found


@cache
def trees() -> dict[str, ast.Module]:
    """Of the modules that may make a span or name an attribute; the others are not parsed."""
    paths = (path for folder in ("chassis", "services", "cli") for path in (ROOT / folder).rglob("*.py"))
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    return {path: parsed(text) for path, text in texts.items() if MARKED.search(text)}


def calls(tree: ast.Module) -> Iterator[tuple[str, str, ast.Call]]:
    """Of methods: what it is called on, its name, the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            on = node.func.value
            name = on.attr if isinstance(on, ast.Attribute) else on.id if isinstance(on, ast.Name) else ""
            yield name.lstrip("_"), node.func.attr, node


def name_of(call: ast.Call) -> str:
    """The first argument; … where it is made of something else."""
    (first, *_) = call.args
    if isinstance(first, ast.JoinedStr):
        (begin, *_) = first.values
        assert isinstance(begin, ast.Constant), ast.unparse(call)
        return f"{begin.value!s}…"
    assert isinstance(first, ast.Constant), f"{ast.unparse(call)}: a name is a literal, or begins with one"
    return str(first.value)


def made() -> tuple[set[str], set[str], set[str]]:
    """Names of spans, of events, and of attributes, as the code makes them."""
    spans, events, attributes = set(), set(), set()
    for path, tree in trees().items():
        of_spans: list[ast.Call] = []
        for on, method, call in calls(tree):
            if on == "telemetry" and method in ("span", "together"):
                spans.add(name_of(call))
                of_spans.append(call)
            elif on == "span" and method in ("event", "set"):
                of_spans.append(call)
                if method == "event":
                    events.add(name_of(call))
        for call in of_spans:
            given = {keyword.arg for keyword in call.keywords if keyword.arg is not None} - NOT_ATTRIBUTES
            assert all(map(GIVEN.fullmatch, given)), f"{path}:{call.lineno}: {given}"
            attributes |= given
        keys = (key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys)
        attributes |= {
            key.value
            for key in keys
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and GIVEN.fullmatch(key.value)
        }
    return spans, events, {name.replace("__", ".") for name in attributes} | exported()


def exported() -> set[str]:
    """What is given with its dots, to the SDK itself."""
    constants = (node for node in ast.walk(trees()["chassis/telemetry/otlp.py"]) if isinstance(node, ast.Constant))
    return {one.value for one in constants if isinstance(one.value, str) and NAME.fullmatch(one.value)}


@cache
def conventions() -> frozenset[str]:
    """Of the installed release, every attribute of the namespaces that the manual has names of."""
    namespaces = {name.partition(".")[0] for name in table("attribute")} - {"airmesh"}
    modules = [importlib.import_module(f"{_incubating.__name__}.attributes.{name}_attributes") for name in namespaces]
    return frozenset(
        value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and NAME.fullmatch(value)
    )


def test_the_manual_has_every_span_event_and_attribute_and_no_other() -> None:
    spans, events, attributes = made()
    assert (spans, events) == (set(table("span")), set(table("event")))
    assert attributes == set(table("attribute"))
    assert {"policy.compile", "ask …"} <= spans, "the pattern finds nothing"


def test_attributes_have_the_names_of_the_conventions() -> None:
    for name in table("attribute"):
        assert NAME.fullmatch(name), name
        if not name.startswith("airmesh."):
            assert name in conventions() | NO_CONVENTION, name
    assert not NO_CONVENTION & conventions(), "there is a convention by now"


def test_names_of_spans_are_few_and_plain() -> None:
    for name in (*table("span"), *table("event")):
        assert re.fullmatch(r"[a-z][a-z]*([-.][a-z]+)*( …)?", name), name


def test_the_manual_says_of_which_kind_a_metric_is() -> None:
    kinds = {name: cells[0] for name, cells in table("metric").items()}
    for name, kind in metrics().items():
        assert kinds[name] == kind.removesuffix("MetricFamily").lower(), name


def test_an_attribute_is_named_as_it_is_given() -> None:
    telemetry = Telemetry("a", "b", {})
    with telemetry.span("x", k8s__pod__name="web", airmesh__changed=1) as span:
        span.set(messaging__operation__name="ask")
    (kept,) = [one for spans in telemetry.ring._by_owner.values() for one in spans]
    assert [name for name, _ in kept.published().attributes] == [
        "k8s.pod.name", "airmesh.changed", "messaging.operation.name",
    ]  # fmt: skip
