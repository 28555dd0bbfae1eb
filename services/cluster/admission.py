"""Lets nodes onto the bus and puts those out that are gone: the shell of ``core.admission``.

Owns the accounts of nodes' agents: their JWTs are signed here, by a key that servers take for the operator's, and
handed to the servers that run. A node's agent asks as the user ``bootstrap``; the API server says which pod asks. An
account is what the table of roles says now, so one that was signed by an earlier release is signed again; that of a
node whose Node is gone lets nobody in.

What it may cost others is bounded where it comes in: :data:`AT_ONCE` requests each :data:`PAUSE` seconds reach this
process, whoever floods (``chassis.bus.rationed``). Only the lease holder answers and signs. Units: seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from chassis.bus.accounts import Account
from chassis.bus.client import View
from chassis.bus.connection import Connection
from chassis.bus.credentials import Credentials, parse
from chassis.bus.nats_config import account_of_node
from chassis.bus.nats_jwt import RESOLVER_USER, NodeIssuer, claims_of
from chassis.bus.rationed import serve_some
from chassis.bus.resolver import connected, hand_over, look_up
from chassis.faults import Refused, SettingsFault, Unavailable
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from chassis.runtime.service import Runtime
from chassis.secret import Secret
from chassis.telemetry.log import Log
from proto.admission import Admission, AdmissionRequest
from proto.codec import Malformed, encode_segment
from proto.objects import KIND_OF, Node
from proto.subjects import CLUSTER_ADMIT, ROLES, Role
from services.cluster.core import admission as core
from services.cluster.core import reports
from services.cluster.core.cache import Cache
from services.cluster.core.departed import writer_of
from services.cluster.core.reports import rfc3339
from services.cluster.kube import Kube, Refusal
from services.cluster.settings import Settings

AT_ONCE = 16
PAUSE = 1.0
IDLE = 0.5
KEPT_EVERY = 5.0
KEPT_AT_ONCE = 8
"""Nodes whose accounts are looked at in one pass."""
MANAGER = "airmesh-admission"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
SEED_FILE, ACCOUNTS_FILE, RESOLVER_FILE = "nodes.seed", "accounts.json", "resolver.creds"
AGENTS: Mapping[str, Role] = {role.name: role for role in ROLES if role.per_node}

_ASKED = Counter(
    "airmesh_admissions", "Nodes' agents that asked to be let onto the bus, by what became of it", ["outcome"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """What the Secret holds."""

    issuer: NodeIssuer
    resolver: Path
    """Credentials of who hands accounts to the servers."""


def read(folder: Path | None) -> Signing | None:
    """None where there is no such Secret. Raises SettingsFault for one that cannot be used."""
    if folder is None or not (folder / SEED_FILE).exists():
        return None
    try:
        others = json.loads((folder / ACCOUNTS_FILE).read_text())
        issuer = NodeIssuer(Secret((folder / SEED_FILE).read_text()), {str(k): str(v) for k, v in others.items()})
        parse((folder / RESOLVER_FILE).read_text())
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsFault("AIRMESH_ADMISSION_DIR", str(folder), f"run `airmesh install` again ({error})") from error
    return Signing(issuer=issuer, resolver=folder / RESOLVER_FILE)


class Bus:
    """Accounts of nodes' agents, as the servers have them. ``servers``: how many answer."""

    def __init__(self, connection: Connection, issuer: NodeIssuer, servers: int) -> None:
        self.connection, self.issuer, self._servers = connection, issuer, servers

    async def claims(self, user: str) -> dict[str, Any]:
        """What an account says; empty where there is none. Raises Unavailable."""
        found = await look_up(self.connection, self.issuer.account(user))
        return claims_of(found) if found.count(".") == 2 else {}

    async def connected(self, user: str) -> set[str]:
        """By which keys agents are connected. Raises Unavailable."""
        return await connected(self.connection, self.issuer.account(user), self._servers)

    async def let_in(self, role: Role, node: str, since: int) -> None:
        """Have the servers let in the keys that were signed from then on. Raises Unavailable or Refused."""
        account = account_of_node(role, node)
        await hand_over(self.connection, self.issuer.sign_account(account, {"*": since - 1}))

    async def put_out(self, user: str, until: int) -> None:
        """Nobody is let in by what was signed up to then. Raises Unavailable or Refused."""
        await hand_over(self.connection, self.issuer.sign_account(Account(name=user), {"*": until}))

    def is_current(self, role: Role, node: str, claims: dict[str, Any]) -> bool:
        """Whether an account is what the table of roles says now, but for since when keys are good."""
        wanted = claims_of(self.issuer.sign_account(account_of_node(role, node), {"*": 0}))
        return _of_table(wanted) == _of_table(claims)


class Admissions:
    """``run`` is a task of the service: it answers who asks."""

    def __init__(  # noqa: PLR0913 - what it asks and what it must be sure of, each by name
        self,
        *,
        ours: Connection,
        bus: Bus,
        kube: Kube,
        lease: Election,
        nodes: Cache,
        account: str,
        instance: str,
        log: Log,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ours, self._bus, self._kube, self._lease, self._nodes = ours, bus, kube, lease, nodes
        self._account, self._instance, self._log, self._clock = account, instance, log, clock
        self._busy: set[str] = set()

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._lease.held and self._ours.connected:
                try:
                    await serve_some(
                        self._ours,
                        CLUSTER_ADMIT,
                        AdmissionRequest,
                        self.admit,
                        most=AT_ONCE,
                        goes_on=lambda: self._lease.held and self._ours.connected,
                        log=self._log,
                    )
                except Unavailable as fault:
                    self._log.debug("admission-not-served", why=fault)
                await asyncio.sleep(PAUSE)
            await asyncio.sleep(IDLE)

    async def admit(self, asks: AdmissionRequest) -> Admission:
        """The JWT that lets the agent in. Raises Refused, or Retryable where it cannot be known now."""
        try:
            made = await self._one_at_a_time(asks)
        except Refused as refused:
            _ASKED.labels(refused.code).inc()
            self._log.warning("not-admitted", node=asks.node[:253], role=asks.role[:64], why=refused.message)
            raise
        _ASKED.labels("admitted").inc()
        return made

    async def _one_at_a_time(self, asks: AdmissionRequest) -> Admission:
        if denial := core.malformed(asks, AGENTS.keys()):
            raise _refused(denial)
        user = _user(asks)
        if user in self._busy:
            raise Refused("busy", f"{user} is being let in already; try again", retry=True)
        self._busy.add(user)
        try:
            return await self._admit(asks, user)
        finally:
            self._busy.discard(user)

    async def _admit(self, asks: AdmissionRequest, user: str) -> Admission:
        if ("", asks.node) not in self._nodes.known:  # before the API server is asked anything
            raise _refused(core.no_node(asks.node))
        who = core.asker(await self._kube.ask(REVIEWS, core.review_body(asks.token)), self._account)
        if isinstance(who, core.Denial):
            raise _refused(who)
        known = self._nodes.known.get(("", asks.node))
        uid = known.uid if known else None
        if denial := core.stranger(asks, who, uid):
            raise _refused(denial)
        decided = await self._decide(asks, user)
        if isinstance(decided, core.Denial):
            if not decided.retry:
                await self._say(asks.node, uid or "", core.REFUSED_REASON, decided.sentence, "Warning")
            raise _refused(decided)
        await self._bus.let_in(AGENTS[asks.role], asks.node, decided.since)
        jwt = asks.jwt or self._bus.issuer.sign_user(user, user, asks.public, issued=decided.issued)
        self._log.info("admitted", node=asks.node, role=asks.role, public=asks.public, pod=who.pod)
        sentence = f"{asks.role} is let onto the bus by the key {asks.public}, as pod {who.pod} asked"
        await self._annotate(asks, decided.issued)
        await self._say(asks.node, uid or "", core.ADMITTED_REASON, sentence, "Normal")
        return Admission(jwt)

    async def _decide(self, asks: AdmissionRequest, user: str) -> core.Grant | core.Denial:
        standing = core.standing(await self._bus.claims(user), await self._bus.connected(user))
        signed = 0
        if asks.jwt:
            try:
                signed = self._bus.issuer.signed_at(user, asks.jwt, asks.public)
            except ValueError as error:
                return core.Denial("malformed", f"jwt: {error}: send what was answered for this key")
        return core.decide(asks, standing, signed=signed, now=int(self._clock()))

    async def _annotate(self, asks: AdmissionRequest, issued: int) -> None:
        body = core.node_body(asks.node, asks.role, asks.public, issued)
        try:
            await self._kube.apply(f"/api/v1/nodes/{asks.node}", body, manager=f"{MANAGER}-{asks.role}")
        except Refusal as refusal:
            self._log.warning("admission-not-annotated", node=asks.node, why=refusal)

    async def _say(self, node: str, uid: str, reason: str, sentence: str, weight: str) -> None:
        await say_on_node(self._kube, node, uid, reason, sentence, weight, self._instance, self._log)


class NodeAccounts:
    """``apply`` keeps accounts as the table of roles has them, and puts nodes out whose Node has been gone for
    ``grace``. ``written``: what nodes wrote, by bucket: it names those that are gone.

    Of two releases that run at a time the one that began later is right: what was signed since this one began stays.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        lease: Election,
        nodes: Cache,
        fresh: Callable[[], bool],
        written: Mapping[str, View],
        grace: float,
        log: Log,
    ) -> None:
        self._bus, self._lease, self._nodes, self._fresh = bus, lease, nodes, fresh
        self._written, self._grace, self._log = written, grace, log
        self._began = time.time()
        self._gone: dict[str, float] = {}
        """Encoded nodes without a Node, and since when."""
        self._out: set[str] = set()
        self._at = ""
        """The node that was looked at last."""

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass: all nodes that are gone, and some of the others. Raises Unavailable or Refused."""
        if not (self._lease.held and self._sure() and self._bus.connection.connected):
            self._gone, self._out = {}, set()
            return Done()
        there = {encode_segment(name): name for _, name in (*self._nodes.known, *self._nodes.faults)}
        now = time.monotonic()
        self._gone = {node: self._gone.get(node, now) for node in self._writers() - there.keys()}
        self._out &= self._gone.keys()
        for node, since in self._gone.items():
            if now - since >= self._grace and node not in self._out and await self._put_out(node):
                self._out.add(node)
        await self._keep(sorted(there.values()))
        return Done()

    def _sure(self) -> bool:
        return self._nodes.synced and self._fresh() and all(view.synced for view in self._written.values())

    def _writers(self) -> set[str]:
        return {
            node
            for name, view in self._written.items()
            for held in (view.entries, view.marks, view.unreadable)
            for key in held
            if (node := writer_of(name, key))
        }

    async def _put_out(self, node: str) -> bool:
        """False while a server says that it does not know an account: one that does may only be slower."""
        known = True
        for role in AGENTS:
            claims = await self._bus.claims(f"{role}-{node}")
            known &= bool(claims)
            if claims and not core.standing(claims, frozenset()).out:
                await self._bus.put_out(f"{role}-{node}", int(time.time()))
                self._log.info("node-put-out", user=f"{role}-{node}")
        return known

    async def _keep(self, names: list[str]) -> None:
        """The next few by name, after those of the pass before."""
        later = [name for name in names if name > self._at]
        chunk = list(islice(later, KEPT_AT_ONCE))
        self._at = chunk[-1] if len(later) > KEPT_AT_ONCE else ""
        for name in chunk:
            for role in AGENTS.values():
                claims = await self._bus.claims(f"{role.name}-{encode_segment(name)}")
                if not claims:
                    await self._remember(role, name)
                    continue
                standing = core.standing(claims, frozenset())
                if standing.out or claims["iat"] >= self._began:
                    continue
                if not self._bus.is_current(role, name, claims):
                    await self._bus.let_in(role, name, standing.since)
                    self._log.info("account-renewed", node=name, role=role.name)

    async def _remember(self, role: Role, name: str) -> None:
        """The servers have lost an account (their disks): the Node says since when its agent's key is good."""
        known = self._nodes.known.get(("", name))
        if known is not None and (since := core.admitted_at(known.raw, role.name)):
            await self._bus.let_in(role, name, since)
            self._log.info("account-handed-over-again", node=name, role=role.name)


def begin(
    runtime: Runtime[Settings],
    *,
    kube: Kube,
    lease: Election,
    nodes: Cache,
    fresh: Callable[[], bool],
    written: Mapping[str, View],
) -> list[Loop]:
    """Start what admits nodes; its loops. None where the installation has given no key for it."""
    settings, log = runtime.settings, runtime.log
    signing = read(settings.admission_dir)
    if signing is None:
        return []
    credentials = Credentials(signing.resolver, settings.nats_ca_file)
    hand = Connection(settings.nats_url, RESOLVER_USER, credentials, f"{runtime.instance} admission", log)
    runtime.spawn("admission connection", hand.run())
    runtime.on_stop(hand.close)
    bus = Bus(hand, signing.issuer, len(settings.nats_url.split(",")))
    admissions = Admissions(
        ours=runtime.bus.connection,
        bus=bus,
        kube=kube,
        lease=lease,
        nodes=nodes,
        account=settings.admission_account,
        instance=runtime.instance,
        log=log,
    )
    runtime.spawn("admission", admissions.run())
    kept = NodeAccounts(
        bus=bus, lease=lease, nodes=nodes, fresh=fresh, written=written, grace=settings.departed_grace, log=log
    )
    return [Loop(runtime, "accounts of nodes", cursors=[], apply=kept.apply, period=KEPT_EVERY)]


async def say_on_node(
    kube: Kube, node: str, uid: str, reason: str, sentence: str, weight: str, instance: str, log: Log
) -> None:
    """One Event on a Node, once an hour for each sentence."""
    report = reports.Report(kind=KIND_OF[Node], namespace="", name=node, uid=uid, sentence=sentence, reason=reason)
    now = time.time()
    body = {**reports.event_body(report, now=now, stamp=rfc3339(now), instance=instance), "type": weight}
    try:
        await kube.create(reports.event_path(report), body, manager=MANAGER)
    except Refusal as refusal:
        if refusal.status != 409:
            log.warning("event-refused", why=refusal)


def _user(asks: AdmissionRequest) -> str:
    try:
        return f"{asks.role}-{encode_segment(asks.node)}"
    except Malformed as error:
        raise Refused("malformed", f"node: {error}") from error


def _refused(denial: core.Denial) -> Refused:
    return Refused(denial.code, denial.sentence, retry=denial.retry)


def _of_table(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dict(claims.get("nats") or {}).items() if key != "revocations"}
