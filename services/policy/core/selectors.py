"""Label selectors, exactly as Kubernetes matches them.

Source: meta/v1 LabelSelector and ``labels.Requirement.Matches`` of apimachinery. All requirements must hold. ``NotIn``
and ``DoesNotExist`` hold for a label that is absent. A selector without requirements selects everything; ``None`` in
its place selects nothing. Values are compared as bytes are: no globbing, no case folding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from proto.objects import Requirement, Selector

EVERYTHING = Selector()
"""Selects all that there is."""


def selects(selector: Selector | None, labels: Mapping[str, str]) -> bool:
    """Whether ``labels`` meet every requirement of ``selector``."""
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in selector.match_labels) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            assert_never(requirement.operator)


def keys_named(selector: Selector | None) -> frozenset[str]:
    """Label keys that the selector's outcome can depend on."""
    if selector is None:
        return frozenset()
    return frozenset(key for key, _ in selector.match_labels) | frozenset(
        requirement.key for requirement in selector.match_expressions
    )
