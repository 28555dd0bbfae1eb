"""The API server that runs has no field that docs/fields.md has no decision for."""

from __future__ import annotations

import json

import pytest

from tests.core.cluster.fields import API, in_openapi
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

DOCUMENTS = ("api/v1", "apis/apps/v1", "apis/discovery.k8s.io/v1", "apis/networking.k8s.io/v1")


def test_the_list_of_fields_is_that_of_the_api_server(lab: Lab) -> None:
    served = in_openapi(json.loads(lab.kubectl("get", "--raw", f"/openapi/v3/{path}")) for path in DOCUMENTS)
    listed = {name: fields.split() for name, _, fields in (one.partition(": ") for one in API.read_text().splitlines())}
    assert listed.keys() - served.keys() == set()
    assert {name: new for name, fields in listed.items() if (new := served[name] - set(fields))} == {}
