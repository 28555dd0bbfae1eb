"""Which other network runs, by what the API has, and in which order it goes."""

from __future__ import annotations

from typing import Any

import pytest

from cli.install.networks import NETWORKS, STATIC, running, warning, why_not

BARE: dict[str, Any] = {"metadata": {"name": "n1"}, "spec": {}}
RANGE: dict[str, Any] = {"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.85.1.0/24"}}
CALICO, CILIUM, FLANNEL = NETWORKS


@pytest.mark.parametrize(
    ("daemon_sets", "nodes", "found"),
    [
        pytest.param([], [BARE], (), id="none"),
        pytest.param([("kube-flannel", "kube-flannel-ds")], [RANGE], (FLANNEL,), id="flannel"),
        pytest.param([("kube-system", "kube-flannel-ds")], [RANGE], (FLANNEL,), id="flannel-of-old"),
        pytest.param([("calico-system", "calico-node")], [BARE], (CALICO,), id="calico-of-its-operator"),
        pytest.param([("kube-system", "calico-node")], [RANGE], (CALICO,), id="calico"),
        pytest.param([("kube-system", "cilium")], [RANGE], (CILIUM,), id="cilium"),
        pytest.param([("kube-system", "calico-node"), ("kube-flannel", "kube-flannel-ds")], [RANGE], (CALICO, FLANNEL),
                     id="canal"),
        pytest.param([("kube-system", "kube-proxy")], [BARE, RANGE], (STATIC,), id="static-routes"),
        pytest.param([("default", "cilium")], [BARE], (), id="another-of-that-name"),
    ],
)  # fmt: skip
def test_which_network_runs(daemon_sets: list[tuple[str, str]], nodes: list[Any], found: tuple[Any, ...]) -> None:
    assert running(daemon_sets, nodes) == found


@pytest.mark.parametrize("network", [*NETWORKS, STATIC], ids=lambda one: one.name)
def test_it_goes_from_the_api_then_from_each_node(network: Any) -> None:
    """What makes the rest anew goes first, the kernel's state last, and only then airmesh comes."""
    wrong, remedy = why_not([network])
    assert network.name in wrong
    order = ("drain all nodes", network.objects, network.configuration, network.state, "install without --migrate")
    indexes = [remedy.index(step) for step in order]
    assert indexes == sorted(indexes)
    assert remedy.endswith("uncordon")


def test_two_networks_are_both_named() -> None:
    wrong, remedy = why_not([CALICO, FLANNEL])
    assert "Calico and Flannel" in wrong
    assert remedy.index(FLANNEL.objects) < remedy.index(CALICO.configuration), "all of the API before all of the nodes"


def test_an_installation_beside_another_is_warned_of() -> None:
    assert warning([CILIUM]).startswith("note: Cilium runs in this cluster, too")
    assert warning([STATIC]) == warning([]) == "", "of routes nobody can tell whether they are used"
    assert "nothing is to be migrated" in why_not([])[0]
