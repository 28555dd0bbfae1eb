"""FelixConfiguration: what is set of the models of routing, as it is read.

Calico's object has some hundred fields, of another program's parts; the mesh acts on those of its models alone.
Promises that a value which nobody could act on is refused in one sentence (the last good object stays, so the old
settings go on; but encryption that it asks for is asked for all the same), and that every field that is not acted on
is known by name, for ``core.unserved`` to tell.

Source: crd.projectcalico.org/v1 FelixConfigurationSpec; RFC 7348 (24 bits of VNI), RFC 8200 (1280).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import field

from kit.model_settings import VXLAN_PORT, WIREGUARD_PORT
from kit.models import LEAST_MTU, MOST_MTU
from proto.objects import FelixConfiguration
from services.cluster.core.malformed import Wrong
from services.cluster.core.shapes import FelixConfigurationShape, FelixConfigurationSpec, Metadata, Shape

MOST_VNI = (1 << 24) - 1
MTUS = ("vxlanMTU", "vxlanMTUV6", "ipipMTU", "wireguardMTU", "wireguardMTUV6")
OF_ALL_NODES = ("vxlanPort", "vxlanVNI", "wireguardEnabled", "wireguardEnabledV6")
"""What nodes must agree on: read from ``default`` alone."""
KNOWN: Mapping[str, str] = {one.encode_name: one.name for one in msgspec.structs.fields(FelixConfigurationSpec)}
"""Fields that are acted on, as the API spells them."""


class _Typed(Shape, frozen=True):
    spec: FelixConfigurationSpec


def felix_configuration(shape: FelixConfigurationShape) -> FelixConfiguration:
    """crd.projectcalico.org/v1 FelixConfiguration; raises :class:`Wrong` and msgspec.ValidationError."""
    spec = msgspec.convert({"spec": shape.spec or {}}, _Typed).spec
    said: dict[str, Any] = {name: getattr(spec, attribute) for name, attribute in KNOWN.items()}
    for name in MTUS:
        _size(name, said[name])
    vni = said["vxlanVNI"]
    if vni is not None and not 1 <= vni <= MOST_VNI:
        raise Wrong("spec.vxlanVNI", f"{vni} is out of range", f"use 1 to {MOST_VNI}: a VNI has 24 bits")
    for name, most in (("vxlanPort", 65535), ("wireguardListeningPort", 65534)):
        if said[name] is not None and not 1 <= said[name] <= most:
            raise Wrong(f"spec.{name}", f"{said[name]} is out of range", f"use a UDP port, 1 to {most}")
    listens = spec.wireguard_listening_port or WIREGUARD_PORT
    if (spec.vxlan_port or VXLAN_PORT) in (listens, listens + 1):
        name = "wireguardListeningPort" if spec.wireguard_listening_port is not None else "vxlanPort"
        why = f"{said[name]} makes one UDP port of VXLAN's and of WireGuard's two ({listens}, {listens + 1})"
        raise Wrong(f"spec.{name}", why, "use ports that are apart")
    return FelixConfiguration(
        name=shape.metadata.name,
        vxlan_port=spec.vxlan_port,
        vxlan_vni=spec.vxlan_vni,
        vxlan_mtu=spec.vxlan_mtu,
        vxlan_mtu_v6=spec.vxlan_mtu_v6,
        ipip_mtu=spec.ipip_mtu,
        wireguard_enabled=spec.wireguard_enabled,
        wireguard_enabled_v6=spec.wireguard_enabled_v6,
        wireguard_listening_port=spec.wireguard_listening_port,
        wireguard_mtu=spec.wireguard_mtu,
        wireguard_mtu_v6=spec.wireguard_mtu_v6,
    )


def _size(name: str, size: int | None) -> None:
    """0 is "chosen for you", as with Calico."""
    if size and size < LEAST_MTU:
        why = f"{size} is less than IPv6 needs of every link ({LEAST_MTU}): pods would lose their IPv6 addresses"
        raise Wrong(f"spec.{name}", why, f"use {LEAST_MTU} or more, or 0 for what fits")
    if size and size > MOST_MTU:
        raise Wrong(f"spec.{name}", f"{size} is more than a link can have", f"use at most {MOST_MTU}, or 0")


class _Asks(Shape, frozen=True):
    wireguard_enabled: Any = None
    wireguard_enabled_v6: Any = field(name="wireguardEnabledV6", default=None)


class _Asking(Shape, frozen=True):
    metadata: Metadata
    spec: _Asks | None = None


def encrypting(good: FelixConfiguration | None, raw: bytes) -> FelixConfiguration | None:
    """What counts of an object that cannot be understood: its last good version, and encryption where it asks for that.

    Whoever writes ``wireguardEnabled: true`` beside a mistake relies on it: packets are dropped rather than sent in the
    clear.
    """
    try:
        read = msgspec.json.decode(raw, type=_Asking)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return good
    asks = read.spec or _Asks()
    on = {name: True for name in ("wireguard_enabled", "wireguard_enabled_v6") if getattr(asks, name) in (True, "true")}
    return msgspec.structs.replace(good or FelixConfiguration(name=read.metadata.name), **on) if on else good
