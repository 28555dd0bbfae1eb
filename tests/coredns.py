"""A real CoreDNS in a network namespace of its own, with the files of a pod: what Corefiles are tried on.

The namespace has the loopback device alone, so every port of a Corefile is free. `/etc` and `/run` are the test's own
in the program's mount namespace: resolv.conf, a service account's token, what a Corefile imports. The Kubernetes API
is a real one (``tests.kubeapi``), taken into the namespace connection by connection.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.images import build
from lab.paths import settings
from lab.topology import LabError
from linux.netns import command, inside, open_netns
from tests.kubeapi import KubeApi

_SECONDS = 60.0
ADDRESSES = ("169.254.20.10/32", "10.96.0.10/32")
"""Beside 127.0.0.1 and ::1: what NodeLocal DNSCache binds."""
RESOLVER = "192.0.2.53"
"""In resolv.conf; nothing answers there."""
_MOUNTS = 'mount --bind "$1/etc" /etc && mount --bind "$1/run" /run && cd /etc/coredns && shift && exec "$@"'
ENVIRONMENT = {
    "DNS_PORT": "53",
    "CLUSTER_DOMAIN": "cluster.local",
    "UPSTREAM": RESOLVER,
    "METRICS_PORT": "9153",
    "KUBERNETES_SERVICE_HOST": "127.0.0.1",
    "KUBERNETES_SERVICE_PORT": "6443",
}
_FILES = {
    "etc/resolv.conf": f"nameserver {RESOLVER}\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/coredns/NodeHosts": "192.0.2.11 n1\n",
    "etc/coredns/example.hosts": "192.0.2.12 b.example.org\n",
    "etc/coredns/db.example.net": "$ORIGIN example.net.\n@ 60 SOA ns a 1 9 9 9 9\n@ 60 NS ns\nns A 192.0.2.1\n",
    "etc/coredns/custom/log.override": "log . {\n    class error\n}\n",
    "etc/coredns/custom/stub.server": "stub.example.org:53 {\n    errors\n    forward . 192.0.2.7\n}\n",
}


def program() -> Path:
    """The lab's binary."""
    try:
        found = build.product(build.COREDNS, settings().cache)
    except LabError as lacking:
        pytest.skip(f"this machine lacks CoreDNS ({lacking})")
    if not found.exists():
        pytest.skip("this machine lacks CoreDNS (python -m lab build)")
    return found


class CoreDNS:
    """One running server. ``write`` is an edit of its Corefile."""

    def __init__(self, room: Room, text: str, name: str = "Corefile") -> None:
        self.room = room
        self._name = name
        self.log = room.folder / f"{uuid.uuid4().hex[:8]}.log"
        self.write(text)
        argv = ["unshare", "-m", "sh", "-c", _MOUNTS, "sh", str(room.folder), str(program())]
        with self.log.open("wb") as log:
            self.running = subprocess.Popen(
                command(room.path, *argv, "-conf", f"/etc/coredns/{name}"),
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT},
            )

    def write(self, text: str) -> None:
        """The file is another one at once, as the kubelet does it."""
        path = self.room.folder / "etc/coredns" / self._name
        path.with_suffix(".new").write_bytes(text.encode())
        path.with_suffix(".new").rename(path)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def starts(self) -> bool:
        """True when it serves, False when it ended."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            if self.running.poll() is not None:
                return False
            if "\nCoreDNS-" in self.said:
                return True
            time.sleep(0.02)
        raise AssertionError(f"neither started nor ended: {self.said}")

    def close(self) -> None:
        self.running.kill()
        self.running.wait(20)


class Room:
    """The namespace and the files. ``api``: the port of a Kubernetes API on the machine's loopback."""

    def __init__(self, folder: Path, api: KubeApi | None) -> None:
        self.name = f"am-dns-{uuid.uuid4().hex[:6]}"
        self.path = f"/run/netns/{self.name}"
        self.folder = folder
        self._api = api
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Room:
        for name, text in _FILES.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        account = self.folder / "run/secrets/kubernetes.io/serviceaccount"
        account.mkdir(parents=True, exist_ok=True)
        (account / "token").write_text("admin")
        subprocess.run(["ip", "netns", "add", self.name], check=True, timeout=20)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True, timeout=20)
        for address in ADDRESSES:
            subprocess.run(["ip", "-n", self.name, "addr", "add", address, "dev", "lo"], check=True, timeout=20)
        if self._api is not None:
            shutil.copy(self._api.folder / "certs" / "apiserver.crt", account / "ca.crt")
            self._spawn(self._accept, self.bound(socket.SOCK_STREAM, 6443), self._api.port)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        subprocess.run(["ip", "netns", "del", self.name], check=False, timeout=20)

    def bound(self, kind: int, port: int = 0) -> socket.socket:
        """A socket of the namespace on 127.0.0.1; a listening one for a TCP port."""
        made: list[socket.socket] = []

        def make() -> None:
            descriptor = open_netns(self.path)
            try:
                with inside(descriptor):
                    one = socket.socket(socket.AF_INET, kind)
                    one.bind(("127.0.0.1", port))
                    made.append(one)
            finally:
                os.close(descriptor)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join(10)
        if kind == socket.SOCK_STREAM and port:
            made[0].listen(64)
        return made[0]

    @contextlib.contextmanager
    def coredns(self, text: str, name: str = "Corefile") -> Iterator[CoreDNS]:
        made = CoreDNS(self, text, name)
        try:
            yield made
        finally:
            made.close()

    def refuses(self, text: str) -> str:
        """What CoreDNS says of a text that it does not start with; empty when it serves."""
        with self.coredns(text) as made:
            return "" if made.starts() else made.said or "nothing"

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket, port: int) -> None:
        listening.settimeout(0.2)
        with listening:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    near, _ = listening.accept()
                    far = socket.create_connection(("127.0.0.1", port), timeout=10)
                    self._spawn(self._carry, near, far)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while not self._stop.is_set():
                for key, _ in ready.select(0.2):
                    chunk = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not chunk:
                        return
                    key.data.sendall(chunk)
