"""LabelSelector as a table: selector, labels, selected or not; and what is made of labels that are not told."""

from __future__ import annotations

import pytest
import yaml

from kit.selectors import Candidate, hidden_key, keys_named, may_select, selects
from proto.identity import IdentityRecord, NamedPort
from proto.objects import Selector
from proto.policy import SelectorPeer
from tests.core.policy.notation import selector

TABLE = """
# selector | labels | selected
{} | {} | yes
{} | {a: "1"} | yes
{matchLabels: {a: "1"}} | {a: "1"} | yes
{matchLabels: {a: "1"}} | {a: "1", b: "2"} | yes
{matchLabels: {a: "1"}} | {a: "2"} | no
{matchLabels: {a: "1"}} | {} | no
{matchLabels: {a: "1", b: "2"}} | {a: "1"} | no
{matchLabels: {a: "1", b: "2"}} | {a: "1", b: "2"} | yes
{matchLabels: {a: ""}} | {a: ""} | yes
{matchLabels: {a: ""}} | {} | no
{matchLabels: {a: "1"}} | {A: "1"} | no
{matchLabels: {a: "1*"}} | {a: "12"} | no
{matchExpressions: [{key: a, operator: In, values: ["1", "2"]}]} | {a: "2"} | yes
{matchExpressions: [{key: a, operator: In, values: ["1", "2"]}]} | {a: "3"} | no
{matchExpressions: [{key: a, operator: In, values: ["1", "2"]}]} | {} | no
{matchExpressions: [{key: a, operator: In, values: [""]}]} | {} | no
{matchExpressions: [{key: a, operator: NotIn, values: ["1"]}]} | {a: "1"} | no
{matchExpressions: [{key: a, operator: NotIn, values: ["1"]}]} | {a: "2"} | yes
{matchExpressions: [{key: a, operator: NotIn, values: ["1"]}]} | {} | yes
{matchExpressions: [{key: a, operator: NotIn, values: ["1"]}]} | {b: "1"} | yes
{matchExpressions: [{key: a, operator: Exists}]} | {a: ""} | yes
{matchExpressions: [{key: a, operator: Exists}]} | {b: "1"} | no
{matchExpressions: [{key: a, operator: DoesNotExist}]} | {b: "1"} | yes
{matchExpressions: [{key: a, operator: DoesNotExist}]} | {a: ""} | no
{matchLabels: {a: "1"}, matchExpressions: [{key: b, operator: Exists}]} | {a: "1"} | no
{matchLabels: {a: "1"}, matchExpressions: [{key: b, operator: Exists}]} | {a: "1", b: "x"} | yes
{matchExpressions: [{key: a, operator: Exists}, {key: a, operator: DoesNotExist}]} | {a: "1"} | no
{matchExpressions: [{key: a, operator: Exists}, {key: a, operator: NotIn, values: ["1"]}]} | {} | no
{matchExpressions: [{key: a, operator: Exists}, {key: a, operator: NotIn, values: ["1"]}]} | {a: "2"} | yes
null | {} | no
null | {a: "1"} | no
"""
ROWS = [line.split(" | ") for line in TABLE.strip().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(("text", "labels", "selected"), ROWS)
def test_selects(text: str, labels: str, selected: str) -> None:
    assert selects(selector(yaml.safe_load(text)), yaml.safe_load(labels)) == (selected == "yes")


def test_keys_named() -> None:
    tree = {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}
    assert keys_named(selector(tree)) == {"a", "b"}
    assert keys_named(selector({})) == keys_named(None) == frozenset()


HIDDEN = """
# selector | told labels | surely | perhaps      (the label h is there, its value is not told)
{} | {} | yes | yes
{matchLabels: {h: "1"}} | {} | no | yes
{matchLabels: {h: "1", a: "1"}} | {a: "1"} | no | yes
{matchLabels: {h: "1", a: "1"}} | {a: "2"} | no | no
{matchLabels: {a: "1"}} | {a: "1"} | yes | yes
{matchLabels: {b: "1"}} | {} | no | no
{matchExpressions: [{key: h, operator: In, values: ["1"]}]} | {} | no | yes
{matchExpressions: [{key: h, operator: NotIn, values: ["1"]}]} | {} | no | yes
{matchExpressions: [{key: h, operator: Exists}]} | {} | yes | yes
{matchExpressions: [{key: h, operator: DoesNotExist}]} | {} | no | no
{matchExpressions: [{key: b, operator: NotIn, values: ["1"]}]} | {} | yes | yes
{matchExpressions: [{key: b, operator: DoesNotExist}]} | {} | yes | yes
{matchExpressions: [{key: h, operator: NotIn, values: ["1"]}, {key: a, operator: Exists}]} | {} | no | no
{matchExpressions: [{key: h, operator: NotIn, values: ["1"]}, {key: a, operator: Exists}]} | {a: "1"} | no | yes
null | {} | no | no
"""
HIDDEN_ROWS = [line.split(" | ") for line in HIDDEN.strip().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(("text", "labels", "surely", "perhaps"), HIDDEN_ROWS)
def test_a_hidden_label_is_there_and_its_value_is_unknown(text: str, labels: str, surely: str, perhaps: str) -> None:
    chosen, reported, hidden = selector(yaml.safe_load(text)), yaml.safe_load(labels), {hidden_key("h")}
    assert selects(chosen, reported, hidden) == (surely == "yes")
    assert may_select(chosen, reported, hidden) == (perhaps == "yes")


def test_hidden_keys_are_hashed_alike_for_ever() -> None:
    assert hidden_key("app.kubernetes.io/name") == HASHED
    assert hidden_key("a") != hidden_key("b")


HASHED = 0x5E114997912B41F6
RECORD = IdentityRecord(
    identity=999,
    digest="d",
    namespace="x",
    namespace_labels=(("team", "blue"),),
    pod_labels=(("app", "db"),),
    hidden_namespace_keys=(hidden_key("cost"),),
    hidden_pod_keys=(hidden_key("build"),),
    named_ports=(NamedPort("pg", 6, 5432),),
)
APP_DB, BLUE, BUILD = Selector((("app", "db"),)), Selector((("team", "blue"),)), Selector((("build", "7"),))


@pytest.mark.parametrize(
    ("peer", "matched"),
    [
        (SelectorPeer(namespace="x"), True),
        (SelectorPeer(namespace="y"), False),
        (SelectorPeer(), False),
        (SelectorPeer(namespace="x", pod_selector=APP_DB), True),
        (SelectorPeer(namespace="x", pod_selector=BLUE), False),
        (SelectorPeer(namespace="x", pod_selector=BUILD), False),
        (SelectorPeer(namespace_selector=Selector()), True),
        (SelectorPeer(namespace_selector=BLUE, pod_selector=APP_DB), True),
        (SelectorPeer(namespace_selector=APP_DB), False),
        (SelectorPeer(namespace="y", namespace_selector=BLUE), False),
        (SelectorPeer(namespace_selector=Selector((("cost", "1"),))), False),
        (SelectorPeer(namespace="x", named_port=NamedPort("pg", 6, 5432)), True),
        (SelectorPeer(namespace="x", named_port=NamedPort("pg", 17, 5432)), False),
        (SelectorPeer(namespace="x", named_port=NamedPort("pg", 6, 6000)), False),
    ],
)
def test_peers(peer: SelectorPeer, matched: bool) -> None:
    assert Candidate.of(RECORD).is_in(peer) == matched
