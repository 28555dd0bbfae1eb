"""A lab's API server as a tenant uses it: many small changes, quicker than a `kubectl` each."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from tests.labkit import Lab

SECONDS = 20.0
NETWORKING = "/apis/networking.k8s.io/v1"


class Refused(Exception):
    """The API server said no; the text has its status and words."""


class Api:
    """One connection to the API server, as the administrator; not for two threads at once."""

    def __init__(self, lab: Lab) -> None:
        self._port = lab.api_port
        self._tls = ssl.create_default_context(cafile=str(lab.where.pki / "ca.crt"))
        self._tls.load_cert_chain(lab.where.pki / "admin.crt", lab.where.pki / "admin.key")
        self._connection: http.client.HTTPSConnection | None = None

    def call(self, verb: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """The decoded answer. Raises Refused, and OSError when the server does not answer."""
        for again in (True, False):
            if self._connection is None:
                self._connection = http.client.HTTPSConnection(
                    "127.0.0.1", self._port, timeout=SECONDS, context=self._tls
                )
            try:
                text = None if body is None else json.dumps(body)
                self._connection.request(verb, path, text, {"Content-Type": kind})
                answer = self._connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                self._connection = None
                if not again:
                    raise OSError(f"{verb} {path}: {error!r}") from error
                continue
            if answer.status >= 300:
                raise Refused(f"{verb} {path}: {answer.status} {said[:300].decode(errors='replace')}")
            return json.loads(said)
        raise AssertionError("unreachable")

    def create(self, path: str, body: Any) -> Any:
        """POST."""
        return self.call("POST", path, body)

    def merge(self, path: str, body: Any) -> Any:
        """A JSON merge patch (RFC 7386): null takes a key out."""
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> None:
        """DELETE at once; what is gone already is gone."""
        try:
            self.call("DELETE", f"{path}?gracePeriodSeconds=0")
        except Refused as refused:
            if " 404 " not in str(refused):
                raise


def pods(namespace: str, name: str = "") -> str:
    """Path of pods."""
    return f"/api/v1/namespaces/{namespace}/pods" + (f"/{name}" if name else "")


def services(namespace: str, name: str = "") -> str:
    """Path of Services."""
    return f"/api/v1/namespaces/{namespace}/services" + (f"/{name}" if name else "")


def policies(namespace: str, name: str = "") -> str:
    """Path of NetworkPolicies."""
    return f"{NETWORKING}/namespaces/{namespace}/networkpolicies" + (f"/{name}" if name else "")
