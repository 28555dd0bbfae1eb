"""The Corefile: golden text, what is always in it, and settings that make none."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.dns.core.corefile import Recipe, Unusable, render

ROOT = Path(__file__).parents[3]

FULL = """\
.:53 {
    errors
    health {
        lameduck 5s
    }
    ready
    loop
    reload 10s 5s
    kubernetes mesh.example in-addr.arpa ip6.arpa {
        pods verified
        ttl 5
        fallthrough in-addr.arpa ip6.arpa # airmesh
    }
    autopath @kubernetes # airmesh
    prometheus :9153
    forward . 192.0.2.53:53 [2001:db8::53]:53 { # airmesh
        max_concurrent 1000
    }
    cache 60 {
        disable success mesh.example
        disable denial mesh.example
    }
    loadbalance
}
"""


def test_with_everything() -> None:
    upstreams = (ip_address("192.0.2.53"), ip_address("2001:db8::53"))
    recipe = Recipe(cluster_domain="mesh.example", upstreams=upstreams, ttl=5, cache=60, autopath=True)
    assert render(recipe) == FULL


def test_the_defaults_are_what_is_applied_before_the_mesh_runs() -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes/coredns.yaml").read_text())
    config = next(document for document in documents if document["kind"] == "ConfigMap")
    assert config["data"]["Corefile"] == render(Recipe())


def test_the_deployment_names_no_replicas() -> None:
    """They are decided by the mesh; a second apply of the file must not take them back."""
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes/coredns.yaml").read_text())
    deployment = next(document for document in documents if document["kind"] == "Deployment")
    assert "replicas" not in deployment["spec"]


RECIPES = st.builds(
    Recipe,
    cluster_domain=st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9](\.[a-z0-9]{1,8}){0,3}", fullmatch=True),
    upstreams=st.lists(st.ip_addresses(), max_size=3, unique=True).map(tuple),
    ttl=st.integers(0, 3600),
    cache=st.integers(1, 86400),
    autopath=st.booleans(),
)


@given(RECIPES)
def test_what_is_always_there(recipe: Recipe) -> None:
    try:
        text = render(recipe)
    except Unusable:
        return
    lines = [line.strip() for line in text.splitlines()]
    first_words = [line.split()[0] for line in lines]
    for plugin in ("errors", "health", "ready", "loop", "reload", "cache", "kubernetes", "prometheus"):
        assert first_words.count(plugin) == 1
    assert "pods verified" in lines
    assert ("forward" in first_words) == bool(recipe.upstreams)
    assert text.count("{") == text.count("}")
    depth = 0
    for line in lines:
        depth += line.removesuffix(" # airmesh").endswith("{")
        assert depth in (1, 2)
        depth -= line == "}"
    assert depth == 0


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (Recipe(cluster_domain=""), "cluster_domain"),
        (Recipe(cluster_domain="Cluster.local"), "cluster_domain"),
        (Recipe(cluster_domain="a b"), "cluster_domain"),
        (Recipe(cluster_domain="a {\n}"), "cluster_domain"),
        (Recipe(cluster_domain="a\n"), "cluster_domain"),
        (Recipe(cluster_domain="."), "cluster_domain"),
        (Recipe(cluster_domain="a" * 64), "cluster_domain"),
        (Recipe(ttl=-1), "ttl"),
        (Recipe(ttl=3601), "ttl"),
        (Recipe(cache=0), "cache"),
        (Recipe(upstreams=(ip_address("0.0.0.0"),)), "upstreams"),
        (Recipe(upstreams=(ip_address("ff02::1"),)), "upstreams"),
        (Recipe(upstreams=(ip_address("192.0.2.1"),) * 2), "upstreams"),
        (Recipe(upstreams=tuple(ip_address(number + 2**24) for number in range(16))), "upstreams"),
    ],
)
def test_a_recipe_that_makes_none(recipe: Recipe, field: str) -> None:
    with pytest.raises(Unusable) as caught:
        render(recipe)
    assert caught.value.field == field
    assert "; " in str(caught.value)
