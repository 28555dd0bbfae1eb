"""A handful of the stock Kubernetes suite's own specs, unchanged; all of them run by `make e2e`."""

from __future__ import annotations

import asyncio

import pytest

from lab.conformance import images
from lab.conformance.suite import Suite
from lab.paths import settings
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.timeout(900)]

NETPOL = "[sig-network] Netpol NetworkPolicy between server and client should"
BALANCERS = "[sig-network] LoadBalancers [Feature:LoadBalancer] should"
SPECS = [
    "[sig-network] DNS should provide DNS for services [Conformance]",
    "[sig-network] Services should serve multiport endpoints from pods [Conformance]",
    "[sig-network] Services should be able to create a functioning NodePort service [Conformance]",
    f"{BALANCERS} be able to create LoadBalancer Service without NodePort and change it [Slow]",
    "[sig-network] Proxy version v1 should proxy through a service and a pod [Conformance]",
    f"{NETPOL} deny ingress from pods on other namespaces [Feature:NetworkPolicy]",
    f"{NETPOL} enforce policy based on Ports [Feature:NetworkPolicy]",
]


@pytest.fixture(scope="module")
def suite(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """The suite's program, with its images in every node; built the first time."""
    program = asyncio.run(images.prepare(lab.where, settings().cache, lab.topology, print))
    return Suite(program, lab.where, lab.topology, tmp_path_factory.mktemp("stock"))


@pytest.mark.parametrize("spec", SPECS)
def test_a_stock_spec_passes(suite: Suite, spec: str) -> None:
    result = asyncio.run(suite.run(spec))
    assert result.outcome == "passed", result.reason


def test_the_suite_has_the_specs_that_are_run(suite: Suite) -> None:
    assert set(SPECS) <= set(asyncio.run(suite.specs()))
