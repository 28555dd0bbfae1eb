"""`airmesh keys bootstrap-token`: another token for nodes that come, those that are there, and the end of one.

A token that is new changes nothing on the bus: nodes' agents find it in its Secret. One that is revoked is void once
the servers have the account that says so; who is connected by it is cut off.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from chassis.bus.joining import USER
from cli.faults import Declined
from cli.install import accounts, bootstrap, names
from cli.install.bootstrap import Token
from cli.install.run import Cluster, Say


class Tokens:
    """Of a cluster whose bus is our own."""

    def __init__(self, cluster: Cluster, say: Say) -> None:
        """Raises `Declined` where no node asks for its keys."""
        self._cluster, self._say = cluster, say
        past = cluster.history()
        if not past:
            raise Declined("airmesh is not installed in this cluster", "install it: airmesh install")
        if cluster.remembered().nats:
            raise Declined(
                "the bus is somebody else's (--nats), and lists its users: no node can ask for a key",
                "let new nodes in by `airmesh keys accounts`, and install again",
            )
        if names.ADMISSION not in cluster.secrets():
            raise Declined("`cluster` cannot let nodes in: its Secret is not there", "run `airmesh upgrade`")
        self._objects = past[-1].objects

    def listed(self) -> tuple[Token, ...]:
        """Those that have not ended, the current one last."""
        now = time.time()
        return tuple(one for one in bootstrap.tokens(self._cluster.secrets().get(names.BOOTSTRAP)) if one.expires > now)

    def make(self, length: int) -> Token:
        """Another one, which nodes are given from now on."""
        there = self._cluster.secrets()
        self._cluster.api.apply(bootstrap.added(there, accounts.issuer(there), length, int(time.time())))
        return self.listed()[-1]

    def revoke(self, name: str) -> Token:
        """End one; the current one afterwards. Raises `Usage` or `Declined`."""
        there = self._cluster.secrets()
        by = accounts.issuer(there)
        self._cluster.api.apply(bootstrap.revoked(there, by, name, int(time.time())))
        there = self._cluster.secrets()
        # A server that starts with an empty store is to know it, too.
        self._cluster.api.apply(accounts.bus_config(there, self._cluster.servers(), by))
        self._cluster.bus.hand_over(self._objects, [accounts.of_services(there, by)[by.account(USER)]])
        self._say(f"token {name} is void")
        return self.listed()[-1]


def line(one: Token, *, is_current: bool) -> str:
    """For a person."""
    until = datetime.fromtimestamp(one.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    state = "revoked" if one.revoked else "nodes are given it" if is_current else "good"
    return f"{one.name}  until {until}  {state}"
