"""What a person asks of an installation, remembered in the cluster so that it is asked once. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from cli.faults import Usage
from cli.install.kinds import Object
from cli.install.names import NAME, NAMESPACE, OPTIONS, PART_OF

_LONGEST_LINK = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """An empty text: as the manifests say, or as it was before."""

    uplinks: str = ""
    """Interfaces that lead from node to node, comma-separated."""
    nats: str = ""
    """Servers of a bus that is there already, comma-separated URLs; empty: install one."""
    registry: str = ""
    """Where images are, as in ghcr.io/someone."""
    tag: str = ""
    """Which images."""
    pools: str = ""
    """CIDRs of the first IPPools, comma-separated; none are made when there are any."""

    def over(self, before: Options) -> Options:
        """These options, and where one is not given what was given before."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}
        return replace(before, **given)

    def check(self) -> None:
        """Raises `Usage` naming the option and the remedy."""
        if not self.uplinks:
            raise Usage(
                "--uplinks is not given: the interfaces that lead from node to node",
                "name them as `ip link` on a node does, as in --uplinks eth0",
            )
        for name in self.uplinks.split(","):
            if not 0 < len(name) <= _LONGEST_LINK or "/" in name or name.split() != [name]:
                raise Usage(f"--uplinks: {name!r} is no interface", "separate the names by commas: eth0,eth1")
        for url in filter(None, self.nats.split(",")):
            parts = urlsplit(url)
            if parts.scheme not in ("nats", "tls") or not parts.hostname:
                raise Usage(f"--nats: {url!r} is not the URL of a NATS server", "write it as nats://HOST:PORT")
        for cidr in filter(None, self.pools.split(",")):
            try:
                ip_network(cidr)
            except ValueError as error:
                raise Usage(f"--pool: {cidr!r} is no CIDR ({error})", "write it as 10.244.0.0/16") from None
        if any(part in self.tag for part in "/@:") or self.tag.split() not in ([], [self.tag]):
            raise Usage(f"--tag: {self.tag!r} is no tag of an image", "write it as 0.1.0")
        if self.registry.split() not in ([], [self.registry]) or "//" in self.registry:
            raise Usage(
                f"--registry: {self.registry!r} is no registry", "write it as HOST[:PORT]/PATH, without https://"
            )


def remembered(found: Object | None) -> Options:
    """The options of the ConfigMap; all empty where there is none. What it says beside them is passed over."""
    said: dict[str, Any] = (found or {}).get("data") or {}
    return Options(**{field.name: str(said.get(field.name, "")) for field in fields(Options)})


def to_remember(options: Options) -> Object:
    """The ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": OPTIONS, "namespace": NAMESPACE, "labels": {PART_OF: "airmesh", NAME: "install"}},
        "data": {field.name: getattr(options, field.name) for field in fields(options)},
    }
