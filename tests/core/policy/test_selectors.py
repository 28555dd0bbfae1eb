"""LabelSelector as a table: selector, labels, selected or not."""

from __future__ import annotations

import pytest
import yaml

from services.policy.core.selectors import keys_named, selects
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
