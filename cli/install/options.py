"""What a person asks of an installation, remembered in the cluster so that it is asked once. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from cli.faults import Usage
from cli.install.kinds import Object
from cli.install.names import NAME, NAMESPACE, OPTIONS, PART_OF
from kit.tunnels import is_tunnel_name

_LONGEST_LINK = 15
SETTINGS = frozenset(
    f"AIRMESH_{name}"
    for name in (
        *("ADDRESS_COOLDOWN", "ADD_DEADLINE", "BACKEND_ENTRIES", "CGROUP", "CONNTRACK_ENTRIES", "DEPARTED_GRACE"),
        *("EXTERNAL_IPS", "FLOW_BUDGET", "FLOW_EVENTS_PER_SECOND", "GC_GRACE", "IPCACHE_ENTRIES", "KUBE_PAGE"),
        *("KUBE_WATCH_SECONDS", "LEASE_SECONDS", "LOG_LEVEL", "PROXY_HEALTH_PORT", "PUBLISH_FORWARDED"),
        *("SERVICE_ENTRIES", "SPARE_ADDRESSES", "TABLE_MEMORY", "TCX"),
    )
)
"""What --set takes: settings of services that neither the manifests nor another option say."""


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
    api_server: str = ""
    """HOST:PORT of the API server as nodes reach it before any Service works; empty: its Service, by kube-proxy."""
    settings: str = ""
    """Settings of agents beside those above, a line NAME=VALUE each."""

    def over(self, before: Options) -> Options:
        """These options, and where one is not given what was given before."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}
        if self.settings:  # one by one; a name without a value is set no more
            merged = {**_lines(before.settings), **_lines(self.settings)}
            given["settings"] = "\n".join(f"{name}={value}" for name, value in sorted(merged.items()) if value)
        return replace(before, **given)

    @property
    def variables(self) -> dict[str, str]:
        """What these add to the environment of agents."""
        given = _lines(self.settings)
        if self.api_server:
            host, _, port = self.api_server.rpartition(":")
            given |= {"KUBERNETES_SERVICE_HOST": host.strip("[]"), "KUBERNETES_SERVICE_PORT": port}
        return given

    def check(self) -> None:
        """Raises `Usage` naming the option and the remedy."""
        if not self.uplinks:
            raise Usage(
                "--uplinks is not given: the interfaces that lead from node to node",
                "name them as `ip link` on a node does, as in --uplinks eth0",
            )
        for name in self.uplinks.split(","):
            _check_uplink(name)
        for url in filter(None, self.nats.split(",")):
            parts = urlsplit(url)
            if parts.scheme not in ("nats", "tls") or not parts.hostname:
                raise Usage(f"--nats: {url!r} is not the URL of a NATS server", "write it as nats://HOST:PORT")
        for cidr in filter(None, self.pools.split(",")):
            try:
                ip_network(cidr)
            except ValueError as error:
                raise Usage(f"--pool: {cidr!r} is no CIDR ({error})", "write it as 10.244.0.0/16") from None
        self._check_api_server()
        for name in _lines(self.settings):
            if name not in SETTINGS:
                known = ", ".join(sorted(SETTINGS))
                raise Usage(
                    f"--set: {name!r} is no setting that can be given", f"write one of these as NAME=VALUE: {known}"
                )
        if any(part in self.tag for part in "/@:") or self.tag.split() not in ([], [self.tag]):
            raise Usage(f"--tag: {self.tag!r} is no tag of an image", "write it as 0.1.0")
        if self.registry.split() not in ([], [self.registry]) or "//" in self.registry:
            raise Usage(
                f"--registry: {self.registry!r} is no registry", "write it as HOST[:PORT]/PATH, without https://"
            )

    def _check_api_server(self) -> None:
        if not self.api_server:
            return
        try:
            parts = urlsplit(f"https://{self.api_server}")
            well = bool(parts.hostname) and parts.port is not None and parts.netloc == self.api_server
        except ValueError:
            well = False
        if not well or "@" in self.api_server:
            raise Usage(
                f"--api-server: {self.api_server!r} is not where an API server is",
                "write it as HOST:PORT, as in 192.0.2.1:6443 or [2001:db8::1]:6443",
            )


def _lines(settings: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in settings.split("\n") if line)}


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


def _check_uplink(name: str) -> None:
    if not 0 < len(name) <= _LONGEST_LINK or "/" in name or name.split() != [name]:
        raise Usage(f"--uplinks: {name!r} is no interface", "separate the names by commas: eth0,eth1")
    if is_tunnel_name(name):
        raise Usage(f"--uplinks: {name!r} is a tunnel's", "name the interfaces that tunnels go over, as eth0")
