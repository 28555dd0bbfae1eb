"""`airmesh keys rotate`: new keys for users of the bus, beside the old ones until these are out of use.

Each step is written down before the next: a Secret with a new key says that the one before is good, too; once no agent
is connected by an old key, the bus gets the account that ends it, and the Secret says so no more. So a run that was
interrupted, or whose node did not answer, is taken up by the next one, which makes no third key: of those whose turn it
is, one whose key is no older than those that are being replaced has been served.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cli.faults import Complaint, Declined, Usage
from cli.install import accounts, jobs, names, rollout, secrets
from cli.install import render as manifests
from cli.install.kinds import Object, ref
from cli.install.run import Cluster, Say
from cli.install.secrets import Host, Key
from proto.subjects import ROLES

AT_A_TIME = 50
"""Jobs at a time: each asks `cluster` for a signature, or servers who is connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A service or a node: who has one Secret of keys."""

    name: str
    secret: str
    host: Host | None
    keys: tuple[Key, ...]


def holders(hosts: Sequence[Host], nodes: Sequence[str], services: Sequence[str], *, everyone: bool) -> list[Holder]:
    """Those that are named, or all. Raises `Usage` for a name that is none, or when nothing is named."""
    there = {holder.name: holder for holder in _all(hosts)}
    if everyone:
        return list(there.values())
    if not nodes and not services:
        raise Usage("whose keys are not said", "give --node NODE, --service SERVICE, or --all")
    found = []
    for kind, name in (*(("node", name) for name in nodes), *(("service", name) for name in services)):
        known = [each for each in there if each.startswith(f"{kind} ")]
        if f"{kind} {name}" not in known:
            said = ", ".join(each.partition(" ")[2] for each in known[:12])
            raise Usage(f"--{kind}: there is no {kind} {name}", f"name one of these: {said}")
        found.append(there[f"{kind} {name}"])
    return found


def _all(hosts: Sequence[Host]) -> Iterator[Holder]:
    keys = tuple(secrets.keys(hosts))
    for role in ROLES:
        if not role.per_node and not role.shared:
            secret = names.seed_secret(role.name)
            own = tuple(key for key in keys if key.secret == secret)
            yield Holder(name=f"service {role.name}", secret=secret, host=None, keys=own)
    for host in hosts:
        secret = names.node_secret(host.name)
        own = tuple(key for key in keys if key.secret == secret)
        yield Holder(name=f"node {host.name}", secret=secret, host=host, keys=own)


def objects_with_own_bus(cluster: Cluster, otherwise: str) -> tuple[Object, ...]:
    """Objects of the installation. Raises `Declined` where there is none, its bus is somebody else's (then, what to do
    ``otherwise``), or its bus lists its users.
    """
    past = cluster.history()
    if not past:
        raise Declined("airmesh is not installed in this cluster", "install it: airmesh install")
    if cluster.remembered().nats:
        raise Declined("the bus is somebody else's (--nats), and its configuration lists the users", otherwise)
    if names.OPERATOR not in cluster.secrets():
        raise Declined(
            "the bus lists its users in a file, as an earlier release installed it",
            "carry it over first: airmesh upgrade",
        )
    return past[-1].objects


def unserved(there: Mapping[str, Object], wanted: Sequence[Holder]) -> list[Holder]:
    """Holders that a rotation which was interrupted has not served to the end; all of them where none was."""
    known = [holder for holder in wanted if holder.secret in there]
    begun = [holder for holder in known if accounts.is_replaced(there[holder.secret])]
    since = min((accounts.issued(there, key) for holder in begun for key in holder.keys), default=0)
    served = [
        holder
        for holder in known
        if begun and holder not in begun and all(accounts.issued(there, key) >= since for key in holder.keys)
    ]
    return [holder for holder in wanted if holder not in served]


class Rotation:
    """Of some holders' keys, in a cluster whose bus is our own."""

    def __init__(self, cluster: Cluster, say: Say) -> None:
        """Raises `Declined` where there is nothing installed, or the bus is somebody else's, or lists its users."""
        self._cluster, self._say = cluster, say
        self._objects = objects_with_own_bus(
            cluster,
            "delete a user's Secret, include what `airmesh keys accounts` prints there, and install again",
        )

    def rotate(self, wanted: Sequence[Holder], *, at_once: bool) -> None:
        """``at_once``: old keys end before anybody has new ones. Raises `Declined` naming whose old keys are still
        good, when the others are done.
        """
        there = self._cluster.secrets()
        own = [holder for holder in wanted if holder.host is not None and not secrets.seeded(there, [holder.host])]
        late = self._renew_on_nodes(own, at_once=at_once)
        others = [holder for holder in wanted if holder not in own]
        late |= self._replace(others if at_once else unserved(there, others), at_once=at_once)
        if late:
            first = next(iter(late.values()))
            state = "have no new keys yet" if at_once else "keep their old keys beside new ones"
            raise Declined(f"{', '.join(late)}: {state} ({first.wrong})", f"{first.remedy}; then run this again")

    def _renew_on_nodes(self, own: Sequence[Holder], *, at_once: bool) -> dict[str, Complaint]:
        """Nodes that made their keys make others, some at a time. Whose did not, and why."""
        late = dict[str, Complaint]()
        for first in range(0, len(own), AT_A_TIME):
            late |= self._renew_on(own[first : first + AT_A_TIME], at_once=at_once)
        return late

    def _renew_on(self, own: Sequence[Holder], *, at_once: bool) -> dict[str, Complaint]:
        about = names.digest(str(time.time_ns()))
        image, settings = manifests.image_of(self._objects, "dataplane"), manifests.settings_of(self._objects)
        work, left = dict[str, Object](), self._left()
        for holder in own:
            if holder.host is not None:
                made = jobs.renew(holder.host, image, settings, about, at_once=at_once)
                work[holder.name] = self._begun(made, left.get(holder.host.name, ()), at_once=at_once)
        late = self._each(work, self._cluster.until_done)
        for name, one in work.items():
            if name not in late:
                self._say(f"{name}: it has made new keys, and its old ones are void")
            self._cluster.api.delete(ref(one))
        return late

    def _left(self) -> dict[str, list[Object]]:
        """Jobs that a run which was killed has left, by node."""
        found: dict[str, list[Object]] = {}
        for one in self._cluster.api.items("batch/v1", "Job", names.NAMESPACE, labels=f"{names.JOB}={jobs.RENEW}"):
            found.setdefault(one["spec"]["template"]["spec"]["nodeName"], []).append(one)
        return found

    def _begun(self, made: Object, left: Iterable[Object], *, at_once: bool) -> Object:
        """The Job of a node that runs from now on, or does already; others of the node end. One that is done counts but
        where keys were stolen: these may be what it has made.
        """
        begun = None
        for one in left:
            stale = at_once and rollout.progress(one).done
            if begun is None and not stale and jobs.does_the_same(one, made):
                self._say(f"node {one['spec']['template']['spec']['nodeName']}: a rotation was begun, and goes on")
                begun = one
            else:
                self._cluster.api.delete(ref(one))
        if begun is None:
            self._cluster.api.create(made)
        return begun or made

    def _replace(self, wanted: Sequence[Holder], *, at_once: bool) -> dict[str, Complaint]:
        """Those whose keys are in Secrets. Who has not taken its new one, and why."""
        late = dict[str, Complaint]()
        if not wanted:
            return late
        self._renew(wanted)
        if at_once:
            self._end_old(wanted)
        for first in range(0, len(wanted), AT_A_TIME):
            some = wanted[first : first + AT_A_TIME]
            late |= self._put_on_nodes([holder for holder in some if holder.host is not None])
            if not at_once:
                late |= self._until_taken([holder for holder in some if holder.name not in late])
        if not at_once:
            self._end_old([holder for holder in wanted if holder.name not in late])
        return late

    def _put_on_nodes(self, some: Sequence[Holder]) -> dict[str, Complaint]:
        work = self._cluster.begin_seeds([holder.host for holder in some if holder.host is not None], self._objects)
        return self._each({holder.name: one for holder, one in zip(some, work, strict=True)}, self._cluster.until_done)

    def _until_taken(self, some: Sequence[Holder]) -> dict[str, Complaint]:
        """Who is not connected by its new keys alone, and why; those of ``some`` are waited for at a time."""
        there = self._cluster.secrets()
        by, bus = accounts.issuer(there), self._cluster.bus
        late = self._each(
            {
                holder.name: bus.begin(
                    self._objects, (), {key.user: accounts.expected(there, key, by) for key in holder.keys}
                )
                for holder in some
            },
            bus.finish,
        )
        if done := [holder.name for holder in some if holder.name not in late]:
            self._say(f"{', '.join(done)}: connected by new keys alone")
        return late

    def _each(self, work: Mapping[str, Object], wait: Callable[[Object, float], None]) -> dict[str, Complaint]:
        """Whose Jobs are not done in the time that they share, and why."""
        end, late = self._cluster.end_of_wait(), dict[str, Complaint]()
        for name, one in work.items():
            try:
                wait(one, end)
            except Complaint as complaint:
                late[name] = complaint
        return late

    def _renew(self, wanted: Sequence[Holder]) -> None:
        there = self._cluster.secrets()
        by = accounts.issuer(there)
        lacking = [holder.name for holder in wanted if holder.secret not in there]
        if lacking:
            raise Declined(f"{', '.join(lacking)}: there are no keys yet", "make them first: airmesh install")
        begun = [holder.name for holder in wanted if accounts.is_replaced(there[holder.secret])]
        if begun:
            self._say(f"{', '.join(begun)}: a rotation was begun, and goes on")
        for holder in wanted:
            if holder.name not in begun:
                self._cluster.api.apply(accounts.renewed_key(there[holder.secret], holder.keys, by))
        self._say(f"{sum(len(holder.keys) for holder in wanted)} keys, each good beside the one before")

    def _end_old(self, ended: Sequence[Holder]) -> None:
        """What was signed before is void: first the bus is given accounts that say so, then the Secrets do. A run that
        is killed in between is not over, and the next one ends it.
        """
        if not ended:
            return
        there = self._cluster.secrets()
        alone = [accounts.with_texts(there[holder.secret], {}, {}) for holder in ended]
        there |= {one["metadata"]["name"]: one for one in alone}
        by, hosts = accounts.issuer(there), [holder.host for holder in ended if holder.host is not None]
        given = [jwt for host in hosts for jwt in accounts.of_host(there, host, by)]
        if len(hosts) < len(ended):
            given += accounts.of_services(there, by).values()
            # A server that starts with an empty store is to know them, too.
            self._cluster.api.apply(accounts.bus_config(there, self._cluster.servers(), by))
        self._cluster.bus.hand_over(self._objects, given)
        for one in alone:
            self._cluster.api.apply(one)
        self._say(f"{', '.join(holder.name for holder in ended)}: old keys are void")
