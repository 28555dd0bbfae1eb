"""The runtime's side of CNI: environment and stdin become one checked :class:`Request`, or one clear refusal.

Owns the input rules of the CNI specification (versions 0.3.1, 0.4.0, 1.0.0, 1.1.0) and of libcni, applied here again
because names from the runtime end up in keys and link names: container id ``[A-Za-z0-9][A-Za-z0-9_.-]*`` (at most
:data:`MAX_CONTAINER`), interface 1 to 15 characters without ``/``, ``:`` and white space. Promises: whatever the bytes
are, :func:`parse` returns a Request or raises :class:`CniError` with a code of the specification; nothing else. Refuses
what it does not know only where the specification says so: unknown keys of a configuration are ignored.
Source: https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import msgspec

from services.dataplane.core.attachment import Attachment

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
MAX_STDIN = 64 << 10
MAX_CONTAINER = 128
MAX_PATH = 1024
MAX_ATTACHMENTS = 4096

_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_INTERFACE = re.compile(r"[^/:\s\x00-\x1f\x7f]{1,15}")
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?")
_POD = re.compile(r"[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?")
_UID = re.compile(r"[a-zA-Z0-9\-]{1,64}")


class Verb(Enum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


FIRST_VERSION = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}
"""Verbs that older versions of the specification do not have."""


class Code(IntEnum):
    """Error codes: below 100 the specification's, from 100 on ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    CONTAINER_UNKNOWN = 3
    BAD_ENVIRONMENT = 4
    IO = 5
    DECODE = 6
    BAD_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    KERNEL_REFUSED = 100
    """The kernel refused a change (link, route, program); nothing of it is left."""
    INTERFACE_EXISTS = 101
    """The container has an interface of this name that is not ours."""
    NOT_AS_LEFT = 102
    """CHECK: something of the attachment is missing."""
    ADDRESS_REFUSED = 103
    """The pod asks for an address that it cannot have; trying again does not help."""
    INTERNAL = 199


class CniError(Exception):
    """A refusal as the specification has it; ``message`` names the field and the remedy."""

    def __init__(self, code: Code, message: str, details: str = "", *, version: str = "1.0.0") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.version = version


NONE = Attachment("", "")
"""Of verbs that are not about one container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRef:
    """The pod that the kubelet says it starts (CNI_ARGS, ``K8S_POD_*``); ``uid`` may be empty with old runtimes."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked call. Fields that its verb does not have are empty."""

    verb: Verb
    version: str
    network: str = ""
    attachment: Attachment = NONE
    netns: str = ""
    pod: PodRef | None = None
    previous: dict[str, Any] | None = None
    """prevResult as it came; which of its parts are well formed is checked where they are used."""
    valid: tuple[Attachment, ...] | None = None
    """GC: attachments that exist; None when the runtime sent no list."""


def parse(environment: Mapping[str, str], stdin: bytes) -> Request:
    """The call that a runtime makes. Raises CniError (codes 1, 4, 6, 7)."""
    config = _decode(stdin)
    version = _version(config)
    try:
        verb = _verb(environment.get("CNI_COMMAND", ""))
        if verb is Verb.VERSION:
            return Request(verb=verb, version=version)
        _supported(verb, version)
        network = _text(config, "name", _NETWORK, "letters, digits, '_', '.', '-', beginning with a letter or digit")
        match verb:
            case Verb.STATUS:
                return Request(verb=verb, version=version, network=network)
            case Verb.GC:
                return Request(verb=verb, version=version, network=network, valid=_attachments(config))
            case _:
                return _per_container(verb, version, network, environment, config)
    except CniError as error:
        error.version = version if version in VERSIONS else "1.0.0"
        raise


def _decode(stdin: bytes) -> dict[str, Any]:
    if len(stdin) > MAX_STDIN:
        raise CniError(Code.DECODE, f"stdin: {len(stdin)} bytes are more than the {MAX_STDIN} that are read")
    try:
        config = msgspec.json.decode(stdin)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise CniError(Code.DECODE, "stdin is not JSON; give the network configuration", str(error)) from error
    if not isinstance(config, dict):
        raise CniError(Code.DECODE, f"stdin is a JSON {type(config).__name__}; give an object, the configuration")
    return config


def _version(config: Mapping[str, Any]) -> str:
    version = config.get("cniVersion", "0.3.1")
    if not isinstance(version, str):
        raise CniError(Code.BAD_CONFIG, f"cniVersion is a {type(version).__name__}; give a string such as 1.0.0")
    return version


def _verb(command: str) -> Verb:
    try:
        return Verb(command)
    except ValueError:
        known = ", ".join(verb.value for verb in Verb)
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_COMMAND={command[:32]!r} is not one of {known}") from None


def _supported(verb: Verb, version: str) -> None:
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"cniVersion {version[:32]!r} is not spoken; use one of {', '.join(VERSIONS)}"
        )
    first = FIRST_VERSION.get(verb, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(first):
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"{verb.value} exists since CNI {first}; the configuration says {version}"
        )


def _text(config: Mapping[str, Any], field: str, shape: re.Pattern[str], means: str) -> str:
    value = config.get(field)
    if not isinstance(value, str) or len(value) > 256 or not shape.fullmatch(value):
        raise CniError(Code.BAD_CONFIG, f"{field}: {str(value)[:64]!r} is not a name; give {means}")
    return value


def _per_container(
    verb: Verb, version: str, network: str, environment: Mapping[str, str], config: Mapping[str, Any]
) -> Request:
    attachment = _attachment(environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", ""))
    previous = config.get("prevResult")
    if previous is not None and not isinstance(previous, dict):
        raise CniError(Code.BAD_CONFIG, f"prevResult is a {type(previous).__name__}; give an object")
    if verb is Verb.CHECK and previous is None:
        raise CniError(Code.BAD_CONFIG, "prevResult is missing; CHECK compares with what ADD answered")
    return Request(
        verb=verb,
        version=version,
        network=network,
        attachment=attachment,
        netns=_netns(verb, environment.get("CNI_NETNS", "")),
        pod=_pod(environment.get("CNI_ARGS", "")) if verb is Verb.ADD else None,
        previous=previous,
    )


def check_container(container: str) -> bool:
    """True for a container id that may be used in a name of ours."""
    return len(container) <= MAX_CONTAINER and _CONTAINER.fullmatch(container) is not None


def check_interface(interface: str) -> bool:
    """True for a name that the kernel takes for a link (``dev_valid_name``)."""
    return interface not in (".", "..") and interface.isascii() and _INTERFACE.fullmatch(interface) is not None


def _attachment(container: str, interface: str) -> Attachment:
    if not check_container(container):
        raise CniError(
            Code.BAD_ENVIRONMENT,
            f"CNI_CONTAINERID={container[:64]!r} is not a container id; "
            f"give at most {MAX_CONTAINER} letters, digits, '_', '.', '-', beginning with a letter or digit",
        )
    if not check_interface(interface):
        raise CniError(
            Code.BAD_ENVIRONMENT,
            f"CNI_IFNAME={interface[:32]!r} is no interface name; give 1 to 15 characters without '/', ':' or blank",
        )
    return Attachment(container, interface)


def _netns(verb: Verb, path: str) -> str:
    if not path and verb is Verb.DEL:
        return ""
    plain = path.startswith("/") and ".." not in path.split("/") and path.isprintable() and len(path) <= MAX_PATH
    if plain:
        return path
    if verb is Verb.DEL:
        return ""  # a DEL succeeds whatever is missing, and never needs the namespace
    raise CniError(
        Code.BAD_ENVIRONMENT,
        f"CNI_NETNS={path[:64]!r} is not an absolute path of a network namespace, such as /run/netns/x",
    )


def _pod(arguments: str) -> PodRef:
    pairs = dict(pair.split("=", 1) for pair in arguments.split(";") if "=" in pair)
    namespace = pairs.get("K8S_POD_NAMESPACE", "")
    name = pairs.get("K8S_POD_NAME", "")
    uid = pairs.get("K8S_POD_UID", "")
    for field, value, shape in (
        ("K8S_POD_NAMESPACE", namespace, _NAMESPACE),
        ("K8S_POD_NAME", name, _POD),
        ("K8S_POD_UID", uid, _UID),
    ):
        if not shape.fullmatch(value) and not (field == "K8S_POD_UID" and not value):
            raise CniError(
                Code.BAD_ENVIRONMENT,
                f"CNI_ARGS: {field}={value[:64]!r} is not what Kubernetes gives; the runtime must pass the pod's",
            )
    return PodRef(namespace=namespace, name=name, uid=uid)


def _attachments(config: Mapping[str, Any]) -> tuple[Attachment, ...] | None:
    listed = config.get("cni.dev/valid-attachments", config.get("cni.dev/attachments"))
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) > MAX_ATTACHMENTS:
        raise CniError(
            Code.BAD_CONFIG, f"cni.dev/valid-attachments is not a list of at most {MAX_ATTACHMENTS} attachments"
        )
    found = []
    for index, entry in enumerate(listed):
        container = entry.get("containerID") if isinstance(entry, dict) else None
        interface = entry.get("ifname") if isinstance(entry, dict) else None
        if not (isinstance(container, str) and check_container(container)):
            raise CniError(Code.BAD_CONFIG, f"cni.dev/valid-attachments[{index}].containerID is not a container id")
        if not (isinstance(interface, str) and check_interface(interface)):
            raise CniError(Code.BAD_CONFIG, f"cni.dev/valid-attachments[{index}].ifname is not an interface name")
        found.append(Attachment(container, interface))
    return tuple(found)


def split_frame(frame: bytes) -> tuple[dict[str, str], bytes]:
    """Environment and stdin of what the executable sends: NUL-ended ``CNI_X=value``, one more NUL, then stdin.

    Raises CniError (code 6) when there is no end of the environment.
    """
    environment: dict[str, str] = {}
    start = 0
    while True:
        end = frame.find(b"\0", start)
        if end < 0:
            raise CniError(Code.DECODE, "the call has no end of its environment; is the executable of this release?")
        if end == start:
            return environment, frame[end + 1 :]
        name, _, value = frame[start:end].decode(errors="replace").partition("=")
        environment[name] = value
        start = end + 1
