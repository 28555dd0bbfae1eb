"""The bus' authority and its servers' certificate, by openssl(1), in a folder that only we can read and that goes away.

Shapes are those of cert-manager's Secrets (tls.crt, tls.key, ca.crt), so a Secret that cert-manager keeps does as well:
one that is there is never replaced. Keys are of the curve P-256. Units: days.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cli.faults import Usage

AUTHORITY_DAYS = 3650
LEAF_DAYS = 825
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str


def _openssl(*arguments: str) -> None:
    try:
        subprocess.run(
            ["openssl", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as missing:
        raise Usage("openssl is not here: it makes the bus' certificates", "install the package openssl") from missing
    except subprocess.CalledProcessError as error:
        raise Usage(
            f"openssl makes no certificate: {str(error.stderr).strip()[-300:]}", "see `openssl version`"
        ) from error


def make_authority() -> Pair:
    """A new authority that signs the servers' certificates and nothing else."""
    with tempfile.TemporaryDirectory(prefix="airmesh-") as folder:
        key, certificate = Path(folder, "key"), Path(folder, "crt")
        out = ["-keyout", str(key), "-out", str(certificate), "-days", str(AUTHORITY_DAYS)]
        _openssl("req", "-x509", *_KEY, "-subj", "/CN=airmesh bus", "-addext", "keyUsage=critical,keyCertSign", *out)
        return Pair(certificate=certificate.read_text(), key=key.read_text())


def sign(authority: Pair, names: Sequence[str]) -> Pair:
    """A server's certificate for DNS names and addresses; servers show it to each other, too."""
    with tempfile.TemporaryDirectory(prefix="airmesh-") as folder:
        of = {name: Path(folder, name) for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")}
        of["ca.crt"].write_text(authority.certificate)
        of["ca.key"].write_text(authority.key)
        alternatives = ",".join(_alternative(name) for name in names)
        _openssl(
            *("req", "-x509", *_KEY, "-days", str(LEAF_DAYS), "-subj", "/CN=nats"),
            *("-CA", str(of["ca.crt"]), "-CAkey", str(of["ca.key"])),
            *("-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", f"subjectAltName={alternatives}"),
            *("-keyout", str(of["tls.key"]), "-out", str(of["tls.crt"])),
        )
        return Pair(certificate=of["tls.crt"].read_text(), key=of["tls.key"].read_text())


def is_signed_by(certificate: str, authority: Pair) -> bool:
    """Whether an authority's key has signed a certificate; False where either cannot be read."""
    with tempfile.TemporaryDirectory(prefix="airmesh-") as folder:
        trusted, leaf = Path(folder, "ca.crt"), Path(folder, "tls.crt")
        trusted.write_text(authority.certificate)
        leaf.write_text(certificate)
        try:
            _openssl("verify", "-no-CApath", "-no-CAstore", "-CAfile", str(trusted), str(leaf))
        except Usage:
            return False
        return True


def names_of(certificate: str) -> frozenset[str]:
    """DNS names and addresses that a certificate is for; none where it cannot be read."""
    try:
        said = subprocess.run(
            ["openssl", "x509", "-noout", "-ext", "subjectAltName"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            input=certificate,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    rows = [part.strip() for line in said.splitlines()[1:] for part in line.split(",")]
    return frozenset(_plain(row.partition(":")[2]) for row in rows if row.startswith(("DNS:", "IP Address:")))


def _plain(name: str) -> str:
    try:
        return str(ip_address(name))
    except ValueError:
        return name


def _alternative(name: str) -> str:
    try:
        return f"IP:{ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"
