"""Where the API server is and who we are: from a kubeconfig, or from the service account that a pod is given.

Owns the credentials and their one way into a TLS context. Refuses what would weaken them (``insecure-skip-tls-verify``,
plain HTTP but to loopback, passwords) and ``exec`` plugins, which this service does not run. A token file is read again
every minute, since the kubelet renews it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from chassis.faults import SettingsFault
from proto.net import host_port

VARIABLE = "AIRMESH_KUBECONFIG"
MAX_FILE = 1 << 20
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_AGE = 60.0
"""Seconds after which a token file is read again."""


@dataclass(slots=True, kw_only=True)
class Credentials:
    """How to reach the API server; nothing of it is ever shown."""

    server: str
    authority: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    token_text: str = field(default="", repr=False)
    token_file: Path | None = None
    _read_at: float = field(default=float("-inf"), repr=False)

    def tls(self) -> ssl.SSLContext | bool:
        """Context of a session; ``True`` (the system's authorities) is never used for HTTPS with an own authority."""
        if self.server.startswith("http://"):
            return True
        context = ssl.create_default_context(cadata=self.authority.decode() if self.authority else None)
        if self.certificate:
            # load_cert_chain takes files only: one that only we can read, gone at once.
            with tempfile.NamedTemporaryFile(suffix=".pem") as chain:
                chain.write(self.certificate + b"\n" + self.key)
                chain.flush()
                context.load_cert_chain(chain.name)
        return context

    def headers(self) -> dict[str, str]:
        """Authorization, fresh."""
        now = time.monotonic()
        if self.token_file is not None and now - self._read_at > TOKEN_AGE:
            self.token_text = self.token_file.read_text().strip()
            self._read_at = now
        return {"Authorization": f"Bearer {self.token_text}"} if self.token_text else {}


def find(path: Path | None, environ: Mapping[str, str] | None = None) -> Credentials:
    """Credentials from a kubeconfig, else from within a pod; raises SettingsFault with the remedy."""
    if path is not None:
        return read(path)
    env = os.environ if environ is None else environ
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (IN_CLUSTER / "token").exists():
        raise SettingsFault(VARIABLE, None, "set it to a kubeconfig, or run in a pod with a service account")
    return Credentials(
        server=f"https://{host_port(host, port)}",
        authority=(IN_CLUSTER / "ca.crt").read_bytes(),
        token_file=IN_CLUSTER / "token",
    )


def read(path: Path) -> Credentials:
    """Credentials of a kubeconfig's current context; raises SettingsFault."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsFault(VARIABLE, str(path), f"make it readable: {error.strerror}") from None
    if len(text) > MAX_FILE:
        raise SettingsFault(VARIABLE, str(path), f"keep it within {MAX_FILE} bytes")
    try:
        return _checked(_chosen(yaml.safe_load(text), path.parent))
    except (yaml.YAMLError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise SettingsFault(VARIABLE, str(path), f"write a kubeconfig ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise SettingsFault(VARIABLE, str(path), str(error)) from None


def _chosen(config: Mapping[str, Any], folder: Path) -> Credentials:
    name = config.get("current-context") or config["contexts"][0]["name"]
    context = _named(config, "contexts", name)["context"]
    cluster = _named(config, "clusters", context["cluster"])["cluster"]
    user = _named(config, "users", context["user"])["user"]
    for entry, wrong in ((user, "exec"), (user, "auth-provider"), (user, "username")):
        if wrong in entry:
            raise ValueError(f"users[{context['user']}].{wrong} is not supported; use a client certificate or a token")
    server = _server(cluster)
    token_file = user.get("tokenFile")
    return Credentials(
        server=server,
        authority=_material(cluster, "certificate-authority", folder),
        certificate=_material(user, "client-certificate", folder),
        key=_material(user, "client-key", folder),
        token_text=user.get("token", ""),
        token_file=folder / token_file if token_file else None,
    )


def _checked(credentials: Credentials) -> Credentials:
    """The credentials back, once a session can be made of them."""
    try:
        credentials.tls()
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"certificate-authority, client-certificate and client-key are not PEM that belongs together ({error})"
        ) from None
    return credentials


def _server(cluster: Mapping[str, Any]) -> str:
    server = str(cluster["server"]).rstrip("/")
    parts = urlsplit(server)
    if cluster.get("insecure-skip-tls-verify"):
        raise ValueError("insecure-skip-tls-verify is refused; give certificate-authority")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError(f"server {server} is plain HTTP; use https")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"server {server} is no URL; write https://address:port")
    return server


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(config: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = next((entry for entry in config[section] if entry["name"] == name), None)
    if found is None:
        raise ValueError(f"{section} has no entry {name!r}; add it or choose another context")
    return found


def _material(entry: Mapping[str, Any], name: str, folder: Path) -> bytes:
    inline = entry.get(f"{name}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True)
        except binascii.Error:
            raise ValueError(f"{name}-data is not base64; write it again") from None
    if entry.get(name):
        try:
            return (folder / str(entry[name])).read_bytes()
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}: {entry[name]}; make it readable") from None
    return b""
