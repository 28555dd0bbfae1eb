"""TLS to the NATS servers: whom a client trusts, read at each connect, and what is wrong with it in one sentence.

A client is given the file of an authority (``ca.crt`` of a Secret as cert-manager writes it). With it, nothing is sent
in the clear: the handshake comes first, before the server's INFO, so that nobody on the way can take TLS out of it.
Without it, a server that demands TLS is told from one that cannot be reached. A file that was replaced counts from the
next connect on; a connection that stands goes on. Who is connected looks at that file, too, and signs in again when it
names an authority more: what its connection is called on the server says whom it trusts, so that the servers'
certificates can be replaced once everybody trusts who signed the new ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import Any

import nats.errors

CA_VARIABLE = "AIRMESH_NATS_CA_FILE"

_SHOWN_WITHIN = 5.0
_EXPIRED, _NOT_YET = 10, 9
_WRONG_NAME = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH (openssl-verification-options(1))."""
_STRANGERS = frozenset({2, 18, 19, 20, 21})
"""The issuer is not known, or the certificate or one above it signed itself."""
_IN_THE_CLEAR = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})


_DEMANDED = f"it demands TLS: set {CA_VARIABLE} to the file of the authority that signed its certificate"


class TlsFault(nats.errors.Error):
    """Its text is the sentence; raised where nats-py expects an error of a connect that failed."""


def trust(authority: Path | None) -> ssl.SSLContext:
    """Trust in the certificates that ``authority`` signed, for the name that was dialled; raises :class:`TlsFault`."""
    if authority is None:
        raise TlsFault(_DEMANDED)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=authority)
    except ssl.SSLError as error:
        raise TlsFault(f"{CA_VARIABLE}={authority} holds no certificate: put the authority's there, as PEM") from error
    except OSError as error:
        raise TlsFault(f"{CA_VARIABLE}={authority} cannot be read: {error.strerror}") from error
    return context


def fingerprint(der: bytes) -> str:
    """By which a certificate (DER) is known: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(der).hexdigest()[:16]


def authorities(context: ssl.SSLContext) -> tuple[str, ...]:
    """Fingerprints of the authorities that are trusted."""
    return tuple(sorted(map(fingerprint, context.get_ca_certs(binary_form=True))))


async def shown(host: str, port: int) -> str:
    """Fingerprint of the certificate that a server shows, whoever signed it. Raises OSError or TimeoutError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(_SHOWN_WITHIN):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        return fingerprint(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.transport.abort()


def options(authority: Path | None) -> dict[str, Any]:
    """What a plain NATS client's ``connect`` needs; raises :class:`TlsFault`."""
    return {"tls": trust(authority), "tls_handshake_first": True} if authority else {}


def is_in_the_clear(error: BaseException) -> bool:
    """What answered did not speak TLS: a server without, or one for which the handshake came too late
    (``nats_config``), which another try tells apart.
    """
    return isinstance(error, ssl.SSLError) and error.reason in _IN_THE_CLEAR


def explain(error: BaseException, authority: Path | None) -> str:
    """What is wrong with TLS, in one sentence with its remedy; empty when the error is of another kind."""
    if isinstance(error, TlsFault):
        return str(error)
    if authority is None and isinstance(error, ssl.SSLError):
        return _DEMANDED
    if isinstance(error, ssl.SSLCertVerificationError):
        code, words = error.verify_code, error.verify_message
        if code == _EXPIRED:
            return "its certificate has expired: renew it, and send the server SIGHUP"
        if code == _NOT_YET:
            return "its certificate is not valid yet: compare the clocks of the server and of this machine"
        if code in _WRONG_NAME:
            return f"its certificate is for another name ({words}): dial a name that it has, or have one made for this"
        if code in _STRANGERS:
            return f"its certificate was not signed by the authority of {CA_VARIABLE}={authority} ({words})"
        return f"its certificate is not accepted: {words}"
    if isinstance(error, ssl.SSLError):
        if is_in_the_clear(error):
            return f"it does not speak TLS, which {CA_VARIABLE} demands"
        return f"TLS failed: {error.reason or error}"
    return ""
