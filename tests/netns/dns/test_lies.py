"""The script that makes a resolver lie, without a lab: objects by a real API, Corefiles by a real CoreDNS, and what
`dns` finds when it asks that resolver.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest

from cli.install.kubernetes import kubectl
from linux.netns import inside, open_netns
from services.dns import doctor
from services.dns.core.corefile import Recipe, render
from services.dns.core.doctor import examine
from services.dns.core.doctor.upstreams import Upstream
from services.dns.core.merge import merge
from tests.coredns import ADDRESSES, RESOLVER, Room
from tests.kubeapi import KubeApi

pytestmark = pytest.mark.privileged
SCRIPT = Path(__file__).resolve().parents[2] / "drills/faults/dns-upstream-lies.sh"
LIAR = ADDRESSES[0].partition("/")[0]
CONFIG_MAPS, POD = "/api/v1/namespaces/kube-system/configmaps", "/api/v1/namespaces/fault/pods/liar"


def run(api: KubeApi, state: Path, verb: str) -> None:
    """The script, with what a lab gives it."""
    wrapped = state / "kubectl"
    wrapped.write_text(f'#!/bin/sh\nexec "{kubectl()}" --kubeconfig="{api.kubeconfig()}" "$@"\n')
    wrapped.chmod(0o755)
    environment = {**os.environ, "STATE": str(state), "PATH": f"{state}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(SCRIPT), verb], env=environment, check=True, timeout=100, capture_output=True)


def as_kubelet(api: KubeApi) -> None:
    """The pod runs as soon as it is there."""
    ready = [{"type": "Ready", "status": "True"}]
    status = {"status": {"phase": "Running", "podIP": LIAR, "podIPs": [{"ip": LIAR}], "conditions": ready}}
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(HTTPError):
            api.merge(f"{POD}/status", status)
            return
        time.sleep(0.1)


def as_namespace_controller(api: KubeApi) -> None:
    """The namespace is gone once its deletion was asked for; what was in it is not looked at again."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = api.call("GET", "/api/v1/namespaces/fault")
        if found["metadata"].get("deletionTimestamp"):
            found["spec"]["finalizers"] = []
            api.call("PUT", "/api/v1/namespaces/fault/finalize", found)
            return
        time.sleep(0.1)


def asked(room: Room) -> examine.Asked:
    """What the agent hears from the resolver, from within the namespace."""
    heard: list[examine.Asked] = []

    def ask() -> None:
        descriptor = open_netns(room.path)
        try:
            with inside(descriptor):
                heard.append(asyncio.run(doctor._ask_upstream(Upstream(".", LIAR))))
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    return heard[0]


def corefile(api: KubeApi) -> str:
    return str(api.call("GET", f"{CONFIG_MAPS}/coredns")["data"]["Corefile"])


def test_a_resolver_that_lies_is_found_and_mended(
    kube_api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 20.0)
    before = render(Recipe())
    kube_api.call("POST", CONFIG_MAPS, {"metadata": {"name": "coredns"}, "data": {"Corefile": before}})
    state = tmp_path / "state"
    state.mkdir()
    try:
        kubelet = threading.Thread(target=as_kubelet, args=(kube_api,))
        kubelet.start()
        run(kube_api, state, "break")
        kubelet.join(60)
        broken = corefile(kube_api)
        lying = kube_api.call("GET", "/api/v1/namespaces/fault/configmaps/liar")["data"]["Corefile"]
        with Room(tmp_path / "room", kube_api) as room:
            assert room.refuses(broken.replace(LIAR, RESOLVER)) == "", "here the resolver's address is its own"
            with room.coredns(lying) as server:
                assert server.starts()
                heard = asked(room)
        assert merge(Recipe(), broken).text == broken, "a person's upstream stays"
        assert examine.wanted_upstreams(broken) == (Upstream(".", LIAR),)
        facts = examine.Facts(service="kube-dns", corefile=broken, by_upstream={Upstream(".", LIAR): heard})
        assert "dns-upstream-lies" in {one.code for one in examine.check(facts)}
        controller = threading.Thread(target=as_namespace_controller, args=(kube_api,))
        controller.start()
        run(kube_api, state, "mend")
        controller.join(60)
        assert corefile(kube_api) == before
    finally:
        kube_api.call("DELETE", f"{CONFIG_MAPS}/coredns")
