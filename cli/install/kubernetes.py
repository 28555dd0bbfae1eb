"""The API server as the current context of a person's kubeconfig reaches it.

Owns one `kubectl proxy` on a socket that only we can open, so that every way of signing in that kubectl knows works
here (certificates, tokens, plugins), and a few calls of plain HTTP through it. Promises a deadline on every call, every
refusal as :class:`Refusal` with the API's own status, and that the proxy ends with us, also when we are killed: a shell
waits on a pipe that our death closes. Changes are server-side applies under one field manager.

Source: kubernetes.io/docs/reference/using-api/server-side-apply and api-concepts. Units: seconds.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from cli.faults import Complaint, Declined, Unreachable, Usage
from cli.install.kinds import Object, Ref, list_path, ref

MANAGER = "airmesh"
"""The one field manager of an installation."""
_START = 30.0
_ANSWER = 30.0
_UNAVAILABLE = (502, 503, 504)


class Refusal(Exception):
    """The API server said no: ``status`` as HTTP has it, ``reason`` and ``message`` as its Status object does."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    def complaint(self, what: str) -> Complaint:
        """The sentence for a person: what was being done, and what the API server said of it."""
        if self.status == 401:
            return Declined(
                f"{what}: the API server does not know who you are", "sign in, and look at `kubectl version`"
            )
        if self.status == 403:
            return Declined(
                f"{what}: you may not: {self.message}",
                "use the kubeconfig of a cluster administrator (--kubeconfig, --context)",
            )
        if self.status in _UNAVAILABLE:
            return Unreachable(
                f"{what}: the API server does not answer ({self.message})", "look at `kubectl get --raw /readyz`"
            )
        return Declined(f"{what}: the API server refuses it: {self.message}", "mend what it names, then run this again")


def kubectl() -> str:
    """The `kubectl` beside this Python, else the one on PATH. Raises `Usage`."""
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if not found:
        raise Usage("kubectl is not here", "put it on PATH, or run `make setup`")
    return found


class _Local(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER)
        self._path = path

    def connect(self) -> None:
        """Open the socket instead of a TCP connection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Kubernetes:
    """``with Kubernetes(…) as api``: open while the block lasts."""

    def __init__(self, kubeconfig: str = "", context: str = "") -> None:
        self._flags = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
        self._flags += [f"--context={context}"] if context else []
        self._folder: Path | None = None
        self._proxy: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._connection: _Local | None = None

    def __enter__(self) -> Self:
        """Start the proxy. Raises `Usage` with kubectl's words where the kubeconfig cannot be used."""
        self._folder = Path(tempfile.mkdtemp(prefix="airmesh-"))
        path, said = self._folder / "api", self._folder / "said"
        try:
            with said.open("wb") as words:
                self._proxy = subprocess.Popen(
                    [kubectl(), "proxy", f"--unix-socket={path}", *self._flags],
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=words,
                    start_new_session=True,
                )
            self._watcher = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r _; kill "$1"; rm -rf "$2"', "sh", str(self._proxy.pid), str(self._folder)],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._await_socket(path, said)
        except BaseException:
            self._close()
            raise
        self._connection = _Local(path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the proxy."""
        self._close()

    def _await_socket(self, path: Path, said: Path) -> None:
        assert self._proxy is not None
        end = time.monotonic() + _START
        while time.monotonic() < end:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1)
                probe.connect(str(path))
                return
            if self._proxy.poll() is not None:
                break
            time.sleep(0.01)
        else:
            raise Unreachable(
                f"`kubectl proxy` has not begun within {_START:.0f} s", "see whether `kubectl version` answers here"
            )
        words = " ".join(said.read_text(errors="replace").split()).removeprefix("error: ")
        raise Usage(f"kubectl cannot use the kubeconfig: {words}", "give one with --kubeconfig, or set KUBECONFIG")

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        # First the watcher: its work is done here, and the proxy's number may be another's later.
        for one in (self._watcher, self._proxy):
            if one is not None:
                with suppress(ProcessLookupError):
                    one.kill()
                one.wait(10)
                if one.stdin is not None:
                    one.stdin.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        """One request; the answer as JSON. Raises :class:`Refusal`, or `Unreachable` when there is no answer."""
        sent = None if body is None else json.dumps(body).encode()
        try:
            status, text = self._exchange(method, path, sent, content)
        except TimeoutError as error:
            raise _silent(error) from error
        except (http.client.HTTPException, OSError):
            # An idle connection may have been closed under us; nothing that is sent here does harm twice.
            try:
                status, text = self._exchange(method, path, sent, content)
            except (http.client.HTTPException, OSError) as error:
                raise _silent(error) from error
        if status >= 300:
            raise _refusal(status, text)
        try:
            return json.loads(text)
        except ValueError:
            return text.decode(errors="replace")

    def _exchange(self, method: str, path: str, sent: bytes | None, content: str) -> tuple[int, bytes]:
        assert self._connection is not None, "used outside of its block"
        try:
            self._connection.request(method, path, sent, {"Content-Type": content, "Accept": "application/json"})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except BaseException:
            self._connection.close()
            raise

    def get(self, wanted: Ref) -> Object | None:
        """An object; None when it is not there, or its kind is not."""
        try:
            found: Object = self.call("GET", wanted.path)
        except Refusal as refusal:
            if refusal.status == 404:
                return None
            raise
        return found

    def items(self, version: str, kind: str, namespace: str = "", *, labels: str = "") -> list[Object]:
        """Objects of a kind, page by page; none where the kind is unknown."""
        found: list[Object] = []
        query = {"limit": "500", **({"labelSelector": labels} if labels else {})}
        while True:
            try:
                page = self.call("GET", f"{list_path(version, kind, namespace)}?{urlencode(query)}")
            except Refusal as refusal:
                if refusal.status == 404:
                    return found
                raise
            # Items of a list do not say what they are.
            found += [{**item, "apiVersion": version, "kind": kind} for item in page.get("items") or ()]
            more = page["metadata"].get("continue", "")
            if not more:
                return found
            query["continue"] = more

    def apply(self, wanted: Object, *, dry_run: bool = False, manager: str = MANAGER) -> Object:
        """Server-side apply: we own exactly the fields that are given, and take them from whoever has them."""
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        made: Object = self.call(
            "PATCH", f"{ref(wanted).path}?{urlencode(query)}", wanted, "application/apply-patch+yaml"
        )
        return made

    def create(self, wanted: Object) -> bool:
        """Make an object; False when one of that name is there already, which stays as it is."""
        at = ref(wanted)
        try:
            self.call("POST", f"{list_path(at.version, at.kind, at.namespace)}?fieldManager={MANAGER}", wanted)
        except Refusal as refusal:
            if refusal.reason == "AlreadyExists":
                return False
            raise
        return True

    def delete(self, gone: Ref, *, foreground: bool = False) -> bool:
        """Delete an object; False when it was not there. ``foreground``: it stays until what it owns is gone."""
        policy = "Foreground" if foreground else "Background"
        try:
            self.call("DELETE", gone.path, {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy})
        except Refusal as refusal:
            if refusal.status == 404:
                return False
            raise
        return True

    def may(self, verb: str, group: str, resource: str, namespace: str = "") -> bool:
        """Whether the API server lets us do this (SelfSubjectAccessReview)."""
        attributes = {"verb": verb, "group": group, "resource": resource.partition("/")[0], "namespace": namespace}
        if "/" in resource:
            attributes["subresource"] = resource.partition("/")[2]
        asked = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asked)
        return bool(answer["status"].get("allowed"))

    def log_of(self, namespace: str, pod: str, container: str, lines: int = 20) -> str:
        """The end of a container's log; empty when it cannot be had."""
        query = urlencode({"container": container, "tailLines": str(lines)})
        with suppress(Refusal):
            return str(self.call("GET", f"/api/v1/namespaces/{namespace}/pods/{quote(pod)}/log?{query}")).strip()
        return ""


def _refusal(status: int, text: bytes) -> Refusal:
    try:
        said = json.loads(text)
        return Refusal(status, str(said.get("reason", "")), str(said.get("message", "no message")))
    except (ValueError, AttributeError):
        return Refusal(status, "", " ".join(text.decode(errors="replace").split())[:300] or "no message")


def _silent(error: Exception) -> Unreachable:
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Unreachable(f"the API server does not answer ({words})", "look at `kubectl get --raw /readyz`")
