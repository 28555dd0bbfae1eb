"""Zones of a Corefile as people write them: with a dot at the end, by a variable, beside zones of their own."""

from __future__ import annotations

import pytest

from services.dns.core.corefile import Recipe, render
from services.dns.core.merge import merge

OURS = render(Recipe())


def test_a_zone_with_a_dot_at_its_end_is_the_same_zone() -> None:
    text = OURS.replace("kubernetes cluster.local in", "kubernetes Cluster.Local. in")
    assert merge(Recipe(), text).text == text


def test_a_persons_zone_that_is_not_cached_stays_beside_the_clusters() -> None:
    text = OURS.replace("disable denial cluster.local", "disable denial example.org")
    assert "disable denial example.org cluster.local\n" in merge(Recipe(), text).text


@pytest.mark.parametrize("key", [".:{$PORT}", "{$ZONE}:53", "{%ZONE%}"])
def test_a_block_that_a_variable_names_may_be_the_clusters(key: str) -> None:
    """A second block for the root would be refused: "cannot serve dns://.:53 - it is already defined"."""
    text = f"{key} {{\n    whoami\n}}\n"
    merged = merge(Recipe(), text)
    assert merged.text == text
    assert "kubernetes" in merged.unmet
