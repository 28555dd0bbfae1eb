"""Authorities and certificates for tests of TLS, by the lab's own commands, in folders as a Secret is mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from lab.cluster import pki


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


class Authority:
    """Signs what it is told to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        _run(pki.authority_argv(folder))

    @property
    def certificate(self) -> Path:
        return self._folder / "ca.crt"

    def sign(self, folder: Path, *names: str, expired: bool = False) -> Path:
        """A folder of ``tls.crt``, ``tls.key`` and ``ca.crt`` for a server of these names; replaces what is there."""
        leaf = pki.Certificate(file="tls", user="nats", names=names or ("127.0.0.1",))
        _run(pki.leaf_argv(leaf, self._folder))
        if expired:
            ask = [
                "-new",
                "-key",
                str(self._folder / "tls.key"),
                "-subj",
                "/CN=nats",
                "-out",
                str(self._folder / "csr"),
            ]
            _run(["openssl", "req", *ask, "-addext", f"subjectAltName=IP:{(names or ('127.0.0.1',))[0]}"])
            by = ["-CA", str(self._folder / "ca.crt"), "-CAkey", str(self._folder / "ca.key"), "-days", "-1"]
            out = ["-in", str(self._folder / "csr"), "-out", str(self._folder / "tls.crt")]
            _run(["openssl", "x509", "-req", "-copy_extensions", "copy", *by, *out])
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tls.crt", "tls.key", "ca.crt"):
            shutil.copy(self._folder / name, folder / f".{name}")
            os.replace(folder / f".{name}", folder / name)
        return folder
