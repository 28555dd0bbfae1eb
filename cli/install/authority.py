"""`airmesh keys rotate --authority`: another authority for the certificates of the bus' servers, beside the old one at
first.

Each step can be seen from outside, and is waited for: servers show a certificate that was made for this step, so they
have read all that stands beside it; what a connection is called on its server says whom it trusts
(`chassis/bus/tls.py`). Servers read their files again where they run, and no connection ends by that. What is there (a
second authority, who signed the certificate) says how far a run came that was interrupted, and the next one goes on
from there.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any

from chassis.bus.tls import fingerprint
from cli.faults import Declined
from cli.install import accounts, certificates, names, secrets
from cli.install.certificates import Pair
from cli.install.kinds import Object
from cli.install.rotation import objects_with_own_bus
from cli.install.run import Cluster, Say


def certificate_secret(there: Mapping[str, Any], leaf: Pair, trusted: str) -> Object:
    """The Secret of the servers' certificate, which they are given while they run: its annotation says with which one
    they were started, so that no later run starts them again for this one.
    """
    made = secrets.secret(
        names.BUS_TLS, {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": trusted}, "kubernetes.io/tls"
    )
    said = {"given": names.digest(leaf.certificate), "started": secrets.started_with(there[names.BUS_TLS])}
    made["metadata"]["annotations"] = {names.STARTED: json.dumps(said, sort_keys=True)}
    return made


class AuthorityRotation:
    """Of a cluster whose bus is our own, and whose certificates we made."""

    def __init__(self, cluster: Cluster, say: Say) -> None:
        """Raises `Declined` where the authority is somebody else's."""
        self._cluster, self._say = cluster, say
        self._objects = objects_with_own_bus(cluster, "rotate its certificates where it is run")
        if not secrets.own_authority(cluster.secrets()):
            raise Declined(
                f"the bus' certificate is somebody else's: Secret {names.BUS_SECRET} has no authority's key",
                f"rotate it where it is made (cert-manager), with both authorities in ca.crt of Secret {names.BUS_TLS} "
                "meanwhile, and run `airmesh install` after each step",
            )

    def rotate(self, *, at_once: bool) -> None:
        """``at_once``: the old authority's key was stolen, so nobody is waited for; who has not the new file yet and
        connects again is away until it has. Raises `Declined` when someone does not come to trust the new one in time:
        both are trusted then, and the next run goes on.
        """
        old, new = self._both()
        both = secrets.bundle(old.certificate, new.certificate)
        if not self._is_shown_by(new):
            if not at_once:
                self._give(old, both)
                self._until_trusted(new)
            self._give(new, new.certificate if at_once else both)
        else:
            self._until_shown(both)
        self._give(new, new.certificate)
        self._cluster.api.apply(secrets.with_authority(self._cluster.secrets(), new))
        self._say("the old authority is trusted no more")

    def _both(self) -> tuple[Pair, Pair]:
        there = self._cluster.secrets()
        if (pairs := secrets.own_authority(there))[1:]:
            self._say("a rotation of the authority was begun, and goes on")
            return pairs[0], pairs[1]
        new = certificates.make_authority()
        self._cluster.api.apply(secrets.with_next_authority(there, new))
        return pairs[0], new

    def _is_shown_by(self, authority: Pair) -> bool:
        leaf = secrets.texts_of(self._cluster.secrets()[names.BUS_TLS])["tls.crt"]
        return certificates.is_signed_by(leaf, authority)

    def _give(self, signer: Pair, trusted: str) -> None:
        """Servers a new certificate, everybody the authorities; returns when servers show it."""
        leaf = certificates.sign(signer, sorted(secrets.names_to_sign(self._cluster.servers())))
        self._cluster.api.apply(certificate_secret(self._cluster.secrets(), leaf, trusted))
        there = self._cluster.secrets()
        self._cluster.api.apply(secrets.authority_map(there))
        self._until_shown(secrets.bundle(*(pair.certificate for pair in secrets.own_authority(there))))

    def _until_shown(self, trusted: str) -> None:
        leaf = secrets.texts_of(self._cluster.secrets()[names.BUS_TLS])["tls.crt"]
        self._cluster.bus.on_servers(self._objects, {"shown": _fingerprint(leaf)}, trusted)
        self._say("servers show their new certificate")

    def _until_trusted(self, authority: Pair) -> None:
        there = self._cluster.secrets()
        by = accounts.issuer(there)
        wanted = {
            "trusted": _fingerprint(authority.certificate),
            "besides": [by.account(name) for name in sorted(names.PERSONS)],
        }
        self._cluster.bus.on_servers(self._objects, wanted, secrets.texts_of(there[names.BUS_TLS])["ca.crt"])
        self._say("everybody who is connected trusts the new authority, too")


def _fingerprint(certificate: str) -> str:
    return fingerprint(ssl.PEM_cert_to_DER_cert(certificate))
