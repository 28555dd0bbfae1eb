"""A real etcd and kube-apiserver on loopback, without a node: what `airmesh install` is tried against.

One for a whole run (about three seconds to start); tests take namespaces, names and users of their own, or clean up.
Who signs in is a token: `admin` is the administrator, `nobody` a user without rights. Every request is in `audit`.
Nothing rolls out here, since no controller and no kubelet runs; tests write into the status of workloads what these
would.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from lab.images import build
from lab.paths import settings
from lab.topology import LabError
from tests.natsd import free_port

USERS = ("admin", "nobody")
_SECONDS = 90.0
ETCD = """
--data-dir={folder}/etcd --unsafe-no-fsync --log-level=error
--listen-client-urls={store} --advertise-client-urls={store} --listen-peer-urls={peer}
--initial-advertise-peer-urls={peer} --initial-cluster=default={peer}
"""
API_SERVER = """
--etcd-servers={store} --secure-port={port} --bind-address=127.0.0.1 --cert-dir={folder}/certs
--service-cluster-ip-range=10.96.0.0/16 --allow-privileged --anonymous-auth=false
--authorization-mode=RBAC --token-auth-file={folder}/tokens.csv --disable-admission-plugins=ServiceAccount
--service-account-issuer=https://kubernetes.default.svc --service-account-key-file={folder}/sa.key
--service-account-signing-key-file={folder}/sa.key
--audit-policy-file={folder}/audit.json --audit-log-path={folder}/audit.log
"""


def program() -> Path:
    """The binary with all components, as a lab has it."""
    try:
        found = build.product(build.KUBERNETES, settings().cache)
    except LabError as lacking:
        pytest.skip(f"this machine lacks a kube-apiserver ({lacking})")
    if not found.exists():
        pytest.skip("this machine lacks a kube-apiserver (python -m lab build)")
    return found


class KubeApi:
    """``start``, then ``kubeconfig(user)``; ``close`` ends both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.log = folder / "kube-apiserver.log"
        self.audit_log = folder / "audit.log"
        self._running: list[subprocess.Popen[bytes]] = []
        self._store = ""

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        client, peer, self.port = free_port(), free_port(), free_port()
        store, sa = f"http://127.0.0.1:{client}", self.folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", str(sa), "2048"], check=True, capture_output=True, timeout=60)
        (self.folder / "tokens.csv").write_text(
            "".join(f'{user},{user},{user},"{"system:masters" if user == "admin" else ""}"\n' for user in USERS)
        )
        (self.folder / "audit.json").write_text(
            json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]})
        )
        self._store, at = store, f"http://127.0.0.1:{peer}"
        self._run("etcd", ETCD, store=store, peer=at, folder=str(self.folder))
        self._serve()

    def serve_again(self, *flags: str) -> None:
        """The API server ends and begins again, with more flags, on what is stored."""
        server = self._running.pop()
        server.kill()
        server.wait(20)
        self._serve(*flags)

    def _serve(self, *flags: str) -> None:
        whole = " ".join((API_SERVER, *flags))
        self._run("kube-apiserver", whole, store=self._store, port=str(self.port), folder=str(self.folder))
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.call("GET", "/readyz") == "ok":
                    return
            if any(one.poll() is not None for one in self._running):
                break
            time.sleep(0.1)
        raise RuntimeError(f"kube-apiserver did not start: {self.log.read_text()[-3000:]}")

    def _run(self, name: str, flags: str, **named: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            argv = ["nice", "-n", "5", str(program()), name, *flags.format(**named).split()]
            self._running.append(subprocess.Popen(argv, stdout=log, stderr=log))

    def close(self) -> None:
        for one in reversed(self._running):
            one.kill()
            one.wait(20)
        self._running = []

    def kubeconfig(self, user: str = "admin", *, port: int = 0, token: str = "") -> Path:
        path = self.folder / f"{user}-{port}-{sha256(token.encode()).hexdigest()[:16]}.kubeconfig"
        cluster = {
            "server": f"https://127.0.0.1:{port or self.port}",
            "certificate-authority": str(self.folder / "certs" / "apiserver.crt"),
        }
        whole = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token or user}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": user}}],
            "current-context": "c",
        }
        path.write_text(json.dumps(whole))
        return path

    def call(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        """A request as the administrator. Raises urllib's errors."""
        context = ssl.create_default_context(cafile=str(self.folder / "certs" / "apiserver.crt"))
        context.check_hostname = False
        headers = {"Authorization": "Bearer admin", "Content-Type": content}
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}{path}",
            method=method,
            headers=headers,
            data=None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            text = answer.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def merge(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def audit(self) -> Iterator[dict[str, Any]]:
        for line in self.audit_log.read_text().splitlines():
            yield json.loads(line)


@pytest.fixture(scope="session")
def kube_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApi]:
    """One for the whole run."""
    made = KubeApi(tmp_path_factory.mktemp("kube"))
    try:
        made.start()
        yield made
    finally:
        made.close()
