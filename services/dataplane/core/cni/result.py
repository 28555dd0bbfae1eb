"""The plugin's side of CNI: results and errors as each version of the specification spells them.

Owns the JSON of answers. A result describes two interfaces, the host's end and the container's, with the addresses on
the latter; versions before 1.0.0 also want ``"version": "4"`` on each address, 1.1.0 takes the MTU. A previous
result of a chain is kept and extended, never replaced. Lengths of prefixes are whole addresses (/32, /128): a pod's
neighbours are all reached through its gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgspec

from proto.net import Address
from services.dataplane.core.cni.request import VERSIONS, CniError, Code, Request

GATEWAY4 = IPv4Address("169.254.1.1")
GATEWAY6 = IPv6Address("fe80::1")
"""What pods route through: link-local addresses that are the same everywhere, with the host's MAC as neighbour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What an ADD made."""

    host_interface: str
    host_mac: bytes
    interface: str
    mac: bytes
    netns: str
    addresses: tuple[Address, ...]
    mtu: int


def gateway(address: Address) -> Address:
    """The gateway of a pod's address."""
    return GATEWAY4 if address.version == 4 else GATEWAY6


def mac_text(mac: bytes) -> str:
    """Six bytes as ``aa:bb:cc:dd:ee:ff``."""
    return mac.hex(":")


def render(request: Request, attached: Attached) -> bytes:
    """Answer of an ADD in the version that the request speaks."""
    result: dict[str, Any] = dict(request.previous or {})
    interfaces = _list(result, "interfaces")
    host: dict[str, Any] = {"name": attached.host_interface, "mac": mac_text(attached.host_mac)}
    pod: dict[str, Any] = {
        "name": attached.interface,
        "mac": mac_text(attached.mac),
        "sandbox": attached.netns,
    }
    if request.version == "1.1.0":
        host["mtu"] = pod["mtu"] = attached.mtu
    ips = []
    for address in attached.addresses:
        entry: dict[str, Any] = {
            "address": f"{address}/{address.max_prefixlen}",
            "gateway": str(gateway(address)),
            "interface": len(interfaces) + 1,
        }
        if request.version.startswith("0."):
            entry["version"] = str(address.version)
        ips.append(entry)
    routes = [
        {"dst": "0.0.0.0/0" if address.version == 4 else "::/0", "gw": str(gateway(address))}
        for address in attached.addresses
    ]
    result |= {
        "cniVersion": request.version,
        "interfaces": [*interfaces, host, pod],
        "ips": [*_list(result, "ips"), *ips],
        "routes": [*_list(result, "routes"), *routes],
        "dns": result.get("dns", {}),
    }
    return msgspec.json.encode(result)


def _list(result: Mapping[str, Any], field: str) -> list[Any]:
    value = result.get(field, [])
    if not isinstance(value, list):
        raise CniError(Code.BAD_CONFIG, f"prevResult.{field} is a {type(value).__name__}; give a list")
    return value


def missing(previous: Mapping[str, Any], attached: Attached) -> str:
    """CHECK: the first thing of ours that the previous result no longer agrees with, as a sentence; empty if none."""
    listed = [entry for entry in _list(previous, "interfaces") if isinstance(entry, dict)]
    ours = next((entry for entry in listed if entry.get("name") == attached.interface and entry.get("sandbox")), None)
    if ours is None:
        return f"prevResult.interfaces does not list {attached.interface}"
    if ours.get("mac", mac_text(attached.mac)) != mac_text(attached.mac):
        return f"{attached.interface} has MAC {mac_text(attached.mac)}, prevResult says {ours.get('mac')}"
    given = {entry.get("address") for entry in _list(previous, "ips") if isinstance(entry, dict)}
    absent = [f"{a}/{a.max_prefixlen}" for a in attached.addresses if f"{a}/{a.max_prefixlen}" not in given]
    return f"prevResult.ips does not list {', '.join(absent)}" if absent else ""


def render_error(error: CniError) -> bytes:
    """The error object of the specification."""
    answer: dict[str, Any] = {"cniVersion": error.version, "code": int(error.code), "msg": error.message[:2048]}
    if error.details:
        answer["details"] = error.details[:2048]
    return msgspec.json.encode(answer)


def render_versions(version: str) -> bytes:
    """Answer of VERSION."""
    return msgspec.json.encode({"cniVersion": version, "supportedVersions": list(VERSIONS)})
