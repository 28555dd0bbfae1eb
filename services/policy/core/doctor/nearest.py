"""The nearest labels that exist to those that a selector asks for and nobody has.

Near is what a person may have meant: one requirement is unmet, and what is there differs from it by a slip of the
keyboard, by upper and lower case, or has the value under another key of the same purpose (``app`` and
``app.kubernetes.io/name``). Values that differ in a number alone are no slip: ``web`` and ``web-2`` are two things,
of which one may well be absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from kit.selectors import selects
from proto.objects import Requirement, Selector

ALIKE = 0.7
"""Least ratio of ``difflib.SequenceMatcher`` of two texts that are near: one slip in a text of four letters."""
_NUMBERS = re.compile(r"[-._]?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """``written`` is what the selector asks for, ``there`` what is there instead; both as ``key=value``."""

    written: str
    there: str
    likeness: float
    """1.0 is the same but for case."""


def alike(one: str, other: str) -> float:
    """How near two different texts are, 0 for not at all."""
    if one.casefold() == other.casefold():
        return 1.0
    if not one or not other or _NUMBERS.sub("", one) == _NUMBERS.sub("", other):
        return 0.0
    if sorted(one.casefold()) == sorted(other.casefold()):
        return 0.95  # two letters changed places
    ratio = SequenceMatcher(None, one.casefold(), other.casefold(), autojunk=False).ratio()
    return ratio if ratio >= ALIKE else 0.0


def texts(selector: Selector) -> str:
    """``app=web, tier in (front, edge)``: a selector as ``kubectl get -l`` takes it; ``every one`` for an empty one."""
    parts = [f"{key}={value}" for key, value in selector.match_labels]
    parts += [_requirement(one) for one in selector.match_expressions]
    return ", ".join(parts) or "every one"


def nearest(selector: Selector, candidates: Iterable[Mapping[str, str]]) -> Near | None:
    """The nearest labels of the candidates, each of which the selector does not select; None where none is near."""
    best: Near | None = None
    for labels in candidates:
        found = _unmet(selector, labels)
        if found is None:
            continue
        key, values = found
        for value in values:
            near = _near(key, value, labels)
            if near is not None and (best is None or (near.likeness, best.there) > (best.likeness, near.there)):
                best = near
    return best


def _unmet(selector: Selector, labels: Mapping[str, str]) -> tuple[str, tuple[str, ...]] | None:
    """The one requirement that is not met, as a key and the values that would do; None for more than one or another."""
    found: list[tuple[str, tuple[str, ...]]] = [
        (key, (value,)) for key, value in selector.match_labels if labels.get(key) != value
    ]
    for one in selector.match_expressions:
        if selects(Selector(match_expressions=(one,)), labels):
            continue
        if one.operator != "In":
            return None
        found.append((one.key, one.values))
    return found[0] if len(found) == 1 else None


def _near(key: str, value: str, labels: Mapping[str, str]) -> Near | None:
    written = f"{key}={value}"
    if key in labels:
        likeness = alike(value, labels[key])
        return Near(written=written, there=f"{key}={labels[key]}", likeness=likeness) if likeness else None
    found = [
        Near(written=written, there=f"{other}={has}", likeness=likeness)
        for other, has in sorted(labels.items())
        if has == value and (likeness := _alike_keys(key, other))
    ]
    return max(found, key=lambda one: one.likeness, default=None)


def _alike_keys(one: str, other: str) -> float:
    if one.endswith(f"/{other}") or other.endswith(f"/{one}"):
        return 0.9
    if {one, other} <= {"app", "k8s-app", "name", "app.kubernetes.io/name"}:
        return 0.85
    return alike(one, other)


def _requirement(one: Requirement) -> str:
    match one.operator:
        case "In":
            return f"{one.key} in ({', '.join(one.values)})"
        case "NotIn":
            return f"{one.key} notin ({', '.join(one.values)})"
        case "Exists":
            return one.key
        case "DoesNotExist":
            return f"!{one.key}"
