"""The lab's certificate authority: which certificates there are, and the `openssl` commands that make them.

Owns the folder `pki/`. Promises keys readable by root alone, names that pods and components verify
(`kubernetes.default.svc`, 10.96.0.1, 127.0.0.1 for the loopback port), and identities as Kubernetes' RBAC wants them
(CN = user, O = group; https://kubernetes.io/docs/setup/best-practices/certificates/). Everything but `make` is pure.
The authority's key stays in the lab's folder and dies with the lab: 365 days are enough.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from lab.topology import API_SERVICE4, API_SERVICE6, Host, LabError, Topology

_DAYS = "365"
_DEADLINE_SECONDS = 30.0
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A leaf to be signed. `names`: DNS names and addresses of a server; empty for a client's certificate."""

    file: str
    user: str
    group: str = ""
    names: tuple[str, ...] = ()
    client: bool = True


AIRMESH_USER = "airmesh:cluster"
"""The user of the `cluster` service; lab/cluster/manifests binds it to its role."""


def _serving(host: Host) -> tuple[str, ...]:
    return (host.name, str(host.fabric4), str(host.fabric6))


def certificates(topology: Topology) -> Iterator[Certificate]:
    """All leaves of a lab."""
    control = topology.control
    yield Certificate(
        file="apiserver",
        user="kube-apiserver",
        client=False,
        names=(
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            str(API_SERVICE4),
            str(API_SERVICE6),
            *_serving(control),
        ),
    )
    yield Certificate(file="apiserver-kubelet-client", user="kube-apiserver-kubelet-client", group="system:masters")
    yield Certificate(file="admin", user="admin", group="system:masters")
    yield Certificate(file="controllers", user="system:kube-controller-manager")
    yield Certificate(file="scheduler", user="system:kube-scheduler")
    yield Certificate(file="airmesh", user=AIRMESH_USER, group="airmesh")
    for node in topology.nodes:
        yield Certificate(file=f"kubelet-{node.name}", user=f"system:node:{node.name}", group="system:nodes")
        yield Certificate(file=f"serving-{node.name}", user=node.name, client=False, names=_serving(node))


def authority_argv(folder: Path) -> list[str]:
    """The self-signed authority."""
    out = ["-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.crt")]
    return ["openssl", "req", "-x509", *_KEY, "-days", _DAYS, "-subj", "/CN=airmesh lab", *out]


def account_key_argv(folder: Path) -> list[str]:
    """The key that signs service accounts' tokens (RSA: the API server's default issuer expects it)."""
    return ["openssl", "genrsa", "-out", str(folder / "sa.key"), "2048"]


def leaf_argv(leaf: Certificate, folder: Path) -> list[str]:
    """One key and its certificate, signed by the authority, in one command (`req -CA`, OpenSSL 3.0)."""
    subject = (f"/O={leaf.group}" if leaf.group else "") + f"/CN={leaf.user}"
    usage = ",".join([*(["serverAuth"] if leaf.names else []), *(["clientAuth"] if leaf.client else [])])
    extensions = ["-addext", f"extendedKeyUsage={usage}", "-addext", "basicConstraints=critical,CA:FALSE"]
    if leaf.names:
        extensions += ["-addext", "subjectAltName=" + ",".join(_alternative(name) for name in leaf.names)]
    signer = ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")]
    out = ["-keyout", str(folder / f"{leaf.file}.key"), "-out", str(folder / f"{leaf.file}.crt")]
    return ["openssl", "req", "-x509", *_KEY, "-days", _DAYS, "-subj", subject, *signer, *extensions, *out]


def _alternative(name: str) -> str:
    try:
        return f"IP:{ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def bus_certificate(host: Host) -> Certificate:
    """Of the NATS server on `host`: `tls.crt` and `tls.key`, as in a Secret of cert-manager."""
    names = ("localhost", "127.0.0.1", str(host.management4), *_serving(host))
    return Certificate(file="tls", user="nats", names=names)


async def _openssl(argv: list[str]) -> None:
    running = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(_DEADLINE_SECONDS):
        _, said = await running.communicate()
    if running.returncode:
        raise LabError(f"{' '.join(argv)}: {said.decode(errors='replace').strip()}")


async def make_bus(host: Host, folder: Path) -> None:
    """The bus' own authority (who has a certificate of it may join the servers), and its server's certificate."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
    await _openssl(authority_argv(folder))
    await _openssl(leaf_argv(bus_certificate(host), folder))


async def make(topology: Topology, folder: Path) -> None:
    """Make the authority and all leaves, two at a time. Raises `LabError` with openssl's words."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
    await asyncio.gather(_openssl(authority_argv(folder)), _openssl(account_key_argv(folder)))
    permits = asyncio.Semaphore(2)

    async def sign(leaf: Certificate) -> None:
        async with permits:
            await _openssl(leaf_argv(leaf, folder))

    async with asyncio.TaskGroup() as group:
        for leaf in certificates(topology):
            group.create_task(sign(leaf))
