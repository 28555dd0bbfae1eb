"""A real API server that is started again with another range of node ports, and what it says of a Service of before."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from pathlib import Path

import pytest

from chassis.runtime.checks import NotChecked
from proto.findings import DoctorRequest, Finding
from proto.objects import KIND_OF, Service
from services.cluster import kubeconfig
from services.cluster.core.cache import Cache
from services.cluster.doctor import PortRangeDoctor
from services.cluster.kube import Kube
from tests.kubeapi import KubeApi

ALL = DoctorRequest()
WEB = "/api/v1/namespaces/default/services"


@pytest.mark.slow
async def test_a_service_of_another_range_is_found(tmp_path: Path) -> None:
    api = KubeApi(tmp_path)
    try:
        api.start()
        for name, port in (("web", 30080), ("inside", 31080)):
            spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}
            api.call("POST", WEB, {"metadata": {"name": name}, "spec": spec})
        api.serve_again("--service-node-port-range=31000-31999")
        kube = Kube(kubeconfig.find(api.kubeconfig()))
        await kube.open()
        cache = Cache(KIND_OF[Service])
        doctor = PortRangeDoctor(kube, cache)

        async def found(asked: DoctorRequest = ALL) -> tuple[Finding, ...]:
            page = await kube.page(WEB, limit=10)
            for _ in cache.replacing(map(bytes, page.items or ())):
                pass
            return tuple(await doctor.check(asked))

        end = time.monotonic() + 60
        while not (listed := await found()):
            assert time.monotonic() < end, "the API server's repair loop looks as it begins"
            await asyncio.sleep(0.5)
        (one,) = listed
        assert one.about == "Service default/web"
        assert "30080 of default/web is outside the API server's range 31000-31999" in one.cause
        assert await found(DoctorRequest(kind="service", name="default/inside")) == ()
        words = shlex.split(one.fixes[0].command)
        patch = json.loads(words[words.index("-p") + 1])
        assert words[:6] == ["kubectl", "-n", "default", "patch", "service", "web"]
        assert patch[0]["value"] == 31000
        api.call("PATCH", f"{WEB}/web", patch, "application/json-patch+json")
        assert await found() == ()
        api.close()
        with pytest.raises(NotChecked, match="Events"):
            await doctor.check(DoctorRequest())
        await kube.close()
    finally:
        api.close()
