"""A real CoreDNS starts with what becomes of every Corefile that it started with before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from services.dns.core.corefile import Recipe
from services.dns.core.merge import merge
from tests.core.dns.generated import corefile
from tests.core.dns.test_forms import FORMS
from tests.coredns import Room
from tests.kubeapi import KubeApi

pytestmark = pytest.mark.privileged
PLAIN, MORE = Recipe(), Recipe(upstreams=(ip_address("192.0.2.53"),), autopath=True)
REFUSED = {"nodelocal-unfilled": "failed to resolve", "snippet-with-arguments": "Import takes only one argument"}
"""Forms that CoreDNS itself refuses, whoever has changed them."""
SHORT = ("kubeadm", "aks", "k3s", "environment", "tabs-and-comments", "domain-block-and-root")
SEEDS = int(os.environ.get("COREFILE_SEEDS", "200"))


@pytest.fixture(scope="module")
def room(kube_api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with Room(tmp_path_factory.mktemp("room"), kube_api) as made:
        yield made


@pytest.mark.parametrize(
    "form",
    [pytest.param(one, id=one.stem, marks=() if one.stem in SHORT else (pytest.mark.slow,)) for one in FORMS],
)
def test_an_installers_form_starts_coredns(room: Room, form: Path) -> None:
    text = form.read_bytes().decode()
    for recipe in (PLAIN, MORE):
        said = room.refuses(merge(recipe, text).text)
        assert REFUSED.get(form.stem, "") in said
        assert bool(said) == (form.stem in REFUSED), said


@pytest.mark.parametrize(
    "seeds", [range(1, 5), pytest.param(range(5, SEEDS), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.timeout(1800)
def test_a_generated_one_starts_coredns(room: Room, seeds: range) -> None:
    for seed in seeds:
        text = corefile(seed)
        said = room.refuses(merge((PLAIN, MORE)[seed % 2], text).text)
        if said:
            before = room.refuses(text)
            assert not before, f"seed {seed}: no Corefile before either: {before}"
        assert not said, f"seed {seed}: {said}\n{text}"
