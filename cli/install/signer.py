"""`airmesh keys rotate --signer`: another key by which `cluster` lets nodes onto the bus, and another resolver.

Whoever took over a pod of `cluster` has both, and may be anybody on the bus. A server trusts another signer only from
a start on, so servers start again twice, one at a time: trusting both, then the new one alone. Between the two each
node's agents get keys that the new one has signed. How far a run came stands in the operator's Secret, and the next one
goes on from there; a node whose keys are in a Secret gets no third ones.
"""

from __future__ import annotations

from dataclasses import replace

from cli.install import accounts
from cli.install import render as manifests
from cli.install.rotation import Rotation, holders, objects_with_own_bus
from cli.install.run import Cluster, Say, checksums_of


class SignerRotation:
    """Of a cluster whose bus is our own."""

    def __init__(self, cluster: Cluster, say: Say) -> None:
        """Raises `Declined` where there is nothing installed, or the bus is somebody else's, or lists its users."""
        self._cluster, self._say = cluster, say
        self._objects = objects_with_own_bus(cluster, "no node is let in there: there is no signer to rotate")

    def rotate(self, *, at_once: bool) -> None:
        """``at_once``: what the old one signed ends before agents have other keys. Raises `Declined` naming nodes that
        have no new keys in time: unless ``at_once``, both signers are trusted then, and the next run goes on.
        """
        there = self._cluster.secrets()
        left = accounts.left_of_rotation(there)
        if left or accounts.signers(there)[1:]:
            self._say("a rotation of the signer was begun, and goes on")
        else:
            self._cluster.api.apply(accounts.with_next_signer(there))
        if at_once or left == "nodes":
            self._end("nodes")
            self._renew_nodes(at_once=True)
        else:
            if not left:
                self._start_again()
                self._renew_nodes(at_once=False)
            self._end("servers")
        self._cluster.api.apply(accounts.with_signer_alone(self._cluster.secrets(), ""))

    def _renew_nodes(self, *, at_once: bool) -> None:
        there, hosts = self._cluster.secrets(), self._cluster.hosts()
        done = accounts.renewed(there, hosts) if not at_once else ()
        nodes = holders(hosts, [host.name for host in hosts], (), everyone=False)
        Rotation(self._cluster, self._say).rotate([one for one in nodes if one.host not in done], at_once=at_once)

    def _end(self, left: accounts.Left) -> None:
        self._cluster.api.apply(accounts.with_signer_alone(self._cluster.secrets(), left))
        self._start_again()
        given = accounts.of_former_signers(self._cluster.secrets(), self._cluster.hosts())
        self._cluster.bus.hand_over(self._objects, given)
        self._say("the old signer is trusted no more")

    def _start_again(self) -> None:
        """Servers, then `cluster`, with what the operator's Secret says by now; the revision says so, too."""
        for one in accounts.missing_operator(self._cluster.secrets()):
            self._cluster.api.apply(one)
        there, servers = self._cluster.secrets(), self._cluster.servers()
        by = accounts.issuer(there)
        config, admission = accounts.bus_config(there, servers, by), accounts.for_cluster(there, by)
        for one in (config, admission):
            self._cluster.api.apply(one)
        self._objects = tuple(
            manifests.fitted(
                self._objects,
                nodes=len(self._cluster.hosts()),
                servers=len(servers),
                checksums=checksums_of(there, config, admission),
            )
        )
        self._cluster.roll_out(self._objects)
        past = self._cluster.history()[-1]
        self._cluster.api.apply(replace(past, objects=self._objects).write())
