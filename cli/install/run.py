"""What the commands do, step by step: look, make keys, render, apply, wait, record; and the way back from each.

Every step looks at what is there first, so a run that was interrupted is taken up by the next one. Whatever fails is
undone: of an upgrade, the revision before is applied again; of a first installation, everything it made is taken away.
Units: seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chassis.bus.accounts import make_accounts
from chassis.bus.nats_config import accounts_part
from cli.faults import Complaint, Declined
from cli.install import (
    accounts,
    bootstrap,
    bus_check,
    failed_jobs,
    jobs,
    names,
    requirements,
    revisions,
    rollout,
    secrets,
)
from cli.install import render as manifests
from cli.install.bus_accounts import BusAccounts, secrets_of
from cli.install.kinds import WORKLOADS, Object, Ref, ref
from cli.install.kubernetes import Kubernetes, Refusal
from cli.install.options import Options, remembered, to_remember
from cli.install.revisions import Revision
from cli.install.secrets import Host

Say = Callable[[str], None]
POLL = 1.0
_ESTABLISHED = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the cluster is to become."""

    options: Options
    hosts: tuple[Host, ...]
    servers: tuple[Host, ...]
    """Nodes that carry our own bus; none with somebody else's."""
    objects: tuple[Object, ...]
    """Everything that is rendered, in order."""

    def with_secrets(self, there: Mapping[str, Any]) -> tuple[Host, ...]:
        """Nodes whose keys are in Secrets: all, where the bus is somebody else's and lists its users."""
        return secrets.seeded(there, self.hosts) if self.servers else self.hosts

    def fitted(self, checksums: Mapping[str, str]) -> list[Object]:
        """Objects as they are for so many nodes and servers, and these keys."""
        return manifests.fitted(self.objects, nodes=len(self.hosts), servers=len(self.servers), checksums=checksums)


class Cluster:
    """One installation in one cluster. ``say`` gets a line of progress at a time."""

    def __init__(self, api: Kubernetes, say: Say, *, timeout: float, poll: float = POLL) -> None:
        self.api = api
        self._say = say
        self.timeout = timeout
        self._poll = poll
        self.bus = BusAccounts(api, say, self.until_done)

    # What is there

    def hosts(self) -> tuple[Host, ...]:
        """All nodes, in the order of their names."""
        found = [secrets.host_of(one) for one in self.api.items("v1", "Node")]
        return tuple(sorted(found, key=lambda one: one.name))

    def servers(self) -> tuple[Host, ...]:
        """Nodes for the bus: those that were chosen, else three (or one), control planes first."""
        nodes = self.api.items("v1", "Node")
        chosen = [one for one in nodes if names.BUS_NODE in (one["metadata"].get("labels") or {})]
        return requirements.choose_servers([secrets.host_of(one) for one in chosen], nodes)

    def remembered(self) -> Options:
        """The options of the installation that is there."""
        return remembered(self.api.get(Ref("v1", "ConfigMap", names.NAMESPACE, names.OPTIONS)))

    def history(self) -> tuple[Revision, ...]:
        """All revisions that are kept."""
        return revisions.history(self.api.items("v1", "ConfigMap", names.NAMESPACE, labels=names.REVISION))

    def secrets(self) -> dict[str, Object]:
        """Our Secrets by name."""
        return secrets_of(self.api)

    # Installing

    def check(self) -> None:
        """Version and rights. Raises `Declined`."""
        requirements.check_cluster(self.api)

    def plan(self, options: Options) -> Plan:
        """What these options come to; makes no change. Raises `Usage` or `Declined` before anything is touched."""
        options.check()
        hosts = self.hosts()
        servers = () if options.nats else self.servers()
        requirements.check_hosts(hosts, servers)
        if not options.pools and not requirements.pools(self.api):
            raise Declined(
                "there is no IPPool: no pod would get an address, and no node would become ready",
                "give CIDRs that nothing else uses, one a family: --pool 10.244.0.0/16 --pool fd00:10:244::/56",
            )
        if options.nats:
            self._check_bus(options.nats.split(",")[0])
        variables = manifests.settings(
            nats=options.nats or secrets.url(servers),
            uplinks=options.uplinks,
            servers=len(servers) or len(options.nats.split(",")),
            tls=not options.nats or options.nats.startswith("tls"),
            more=options.variables,
        )
        if not options.api_server and not self._kube_proxy():
            self._say(
                "note: no kube-proxy is seen: unless something else makes the API server's Service work on nodes, "
                "say where it is with --api-server HOST:PORT"
            )
        rendered = manifests.render(variables, registry=options.registry, tag=options.tag)
        fit = manifests.fitted(rendered, nodes=len(hosts), servers=len(servers), checksums={})
        return Plan(options=options, hosts=hosts, servers=servers, objects=tuple(fit))

    def _kube_proxy(self) -> bool:
        return bool(self.api.items("apps/v1", "DaemonSet", "kube-system", labels="k8s-app=kube-proxy"))

    def _check_bus(self, url: str) -> None:
        """Somebody else's bus knows our users. Raises `Declined`; a bus that does not answer from here is a note."""
        there = self.secrets()
        if names.seed_secret("cli") not in there:
            raise Declined(
                f"the NATS server at {url} cannot know airmesh's users: they have no keys yet",
                "run `airmesh keys accounts`, include what it prints in the server's configuration, and install again",
            )
        silent = bus_check.sign_in(url, secrets.texts_of(there[names.seed_secret("cli")])["seed"].strip())
        if silent:
            self._say(f"note: from here {silent}")

    def accounts(self) -> str:
        """Users and accounts of the bus as a part of a NATS server's configuration; makes the keys that are missing."""
        metadata = {"name": names.NAMESPACE, "labels": {names.PART_OF: "airmesh"}}
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        hosts = self.hosts()
        for one in secrets.missing_keys(self.secrets(), hosts):
            self.api.create(one)
        return accounts_part(make_accounts(secrets.users(self.secrets(), hosts)))

    def installed(self) -> bool:
        """Whether there is anything of ours."""
        return self.api.get(Ref("v1", "Namespace", "", names.NAMESPACE)) is not None

    def install(self, wanted: Plan) -> Revision:
        """Bring the cluster to the plan; the revision that it is now. Undoes what it did when something fails."""
        past = self.history()
        first = not any(one.state == revisions.COMPLETE for one in past)
        try:
            return self._install(wanted, past, first=first)
        except (Complaint, Refusal) as fault:
            self._say("failed: what was begun is undone")
            self._undo(past, wanted, first=first)
            raise fault if isinstance(fault, Complaint) else fault.complaint("install") from fault

    def _install(self, wanted: Plan, past: Sequence[Revision], *, first: bool) -> Revision:
        # Of an uninstall that was interrupted: nothing can be made in a namespace that ends.
        self._gone(f"namespace {names.NAMESPACE}", self._ending_namespace)
        self._apply([one for one in wanted.objects if one["kind"] in ("Namespace", "CustomResourceDefinition")])
        self._established(wanted.objects)
        tag = manifests.image_of(wanted.objects, "cluster").rpartition(":")[2]
        checksums = self._keys(wanted)
        objects = wanted.fitted(checksums)
        revision = revisions.following(past, tag, tuple(objects))
        self.api.apply(revision.write())
        self._apply([one for one in objects if one["kind"] == "ServiceAccount"])
        there = self.secrets()
        having = wanted.with_secrets(there)
        if having and self._runs_signed_bus():  # before an agent's file says what only its new account knows
            self.bus.admit(objects, wanted.hosts, ending=False)
        self.put_seeds(having, wanted.objects)
        self._end_listed_bus(objects)
        self._pools(wanted.options)  # no node is ready before it has addresses to give
        self.roll_out(objects, first=first)
        self._prune(past, objects)
        self.api.apply(to_remember(wanted.options))
        revision = replace(revision, state=revisions.COMPLETE)
        self.api.apply(revision.write())
        for old in past[: -revisions.KEPT]:
            self.api.delete(Ref("v1", "ConfigMap", names.NAMESPACE, old.name))
        return revision

    def go_back(self, to: Revision) -> None:
        """Apply a revision that was kept."""
        self._say(f"going to revision {to.number}, tag {to.tag}")
        self.roll_out(to.objects)
        self._prune(self.history(), to.objects)
        self.api.apply(replace(to, state=revisions.COMPLETE).write())
        self._forget_after(to)

    def _forget_after(self, revision: Revision) -> None:
        for later in self.history():
            if later.number > revision.number:
                self.api.delete(Ref("v1", "ConfigMap", names.NAMESPACE, later.name))

    def roll_out(self, objects: Sequence[Object], *, first: bool = False) -> None:
        """Apply objects in their order; after each workload, wait until it runs. One node at a time is the DaemonSets'
        own rule, and they come last: nodes are changed when what serves them is there.

        Of a ``first`` installation the bus alone is waited for: cluster services and nodes' agents wait for each other
        (ipam gives no block before every node has reported which ones it holds), so both have to be there.
        """
        plain = [one for one in objects if one["kind"] not in WORKLOADS]
        self._apply(plain)
        self._say(f"applied {len(plain)} objects")
        later = []
        for one in (one for one in objects if one["kind"] in WORKLOADS):
            self._apply([one])
            if first and one["kind"] != "StatefulSet":
                later.append(one)
            else:
                self._await_workload(one, objects)
        for one in later:
            self._await_workload(one, objects)

    def _await_workload(self, one: Object, objects: Sequence[Object]) -> None:
        """Waits until it runs; a bus of signed accounts is handed them then."""
        self._await(ref(one), f"{names.NAME}={one['metadata']['labels'][names.NAME]}")
        if one["metadata"]["name"] == names.BUS and rollout.is_signed(one):
            self.bus.admit(objects, self.hosts(), ending=True)

    def _apply(self, objects: Iterable[Object]) -> None:
        for one in objects:
            try:
                self.api.apply(one)
            except Refusal as refusal:
                raise refusal.complaint(str(ref(one))) from refusal

    def _established(self, objects: Iterable[Object]) -> None:
        """The API serves a kind a moment after it is defined."""
        end = time.monotonic() + _ESTABLISHED
        for one in objects:
            if one["kind"] != "CustomResourceDefinition":
                continue
            while not requirements.established(self.api.get(ref(one)) or {}):
                if time.monotonic() > end:
                    raise Declined(f"{ref(one)} is not established", f"look at `kubectl describe crd {ref(one).name}`")
                time.sleep(min(self._poll, 0.1))

    def _keys(self, wanted: Plan) -> dict[str, str]:
        """Make what is missing of keys and certificates; checksums of what pods read at their start."""
        made, there = 0, self.secrets()
        for one in secrets.missing_keys(there, wanted.with_secrets(there)):
            made += self.api.create(one)
        if wanted.servers:
            for host in wanted.hosts:
                if host.admitted and self.api.delete(
                    Ref("v1", "Secret", names.NAMESPACE, names.node_secret(host.name))
                ):
                    self._say(f"node {host.name} has keys of its own by now: those in a Secret are deleted")
            for one in secrets.missing_certificates(self.secrets(), wanted.servers):
                self.api.apply(one)
                made += 1
            for host in wanted.servers:
                self._label(host, on=True)
            there = self.secrets()
            for one in accounts.missing_operator(there):
                made += bool(self.api.apply(one)) if names.OPERATOR in there else self.api.create(one)
            there = self.secrets()
            by = accounts.issuer(there)
            self._apply(accounts.signed_keys(there, wanted.with_secrets(there), by))
            fresh = list(bootstrap.missing(there, by, int(time.time())))
            self._apply(fresh)
            made += len(fresh)
            there = self.secrets()
            config, admission = accounts.bus_config(there, wanted.servers, by), accounts.for_cluster(there, by)
            self._apply([config, admission, secrets.authority_map(there)])
            self._say(f"{made} Secrets made, the others are kept")
            return checksums_of(there, config, admission)
        self._say(f"{made} Secrets made, the others are kept")
        return {}

    def _label(self, host: Host, *, on: bool) -> None:
        """By a field manager of its own: it is the node's, and stays when a plan leaves it out."""
        metadata = {"name": host.name, "labels": {names.BUS_NODE: "true"} if on else {}}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        self.api.apply(node, manager="airmesh-bus")

    def put_seeds(self, hosts: Sequence[Host], objects: Iterable[Object]) -> None:
        """Each node's seeds from its Secret into its folder; returns when they are there. Raises `Declined`."""
        for one in self.begin_seeds(hosts, objects):
            self.until_done(one)

    def end_of_wait(self) -> float:
        """When what begins now is to be done (monotonic)."""
        return time.monotonic() + self.timeout

    def until_done(self, work: Object, end: float | None = None) -> None:
        """Until a Job is done, or `end` (monotonic) comes where several share their time. Raises `Declined`."""
        self._await(ref(work), f"{names.NAME}={work['metadata']['labels'][names.NAME]}", end)

    def begin_seeds(self, hosts: Sequence[Host], objects: Iterable[Object]) -> list[Object]:
        """Have the same done; the Jobs that do it. One that has done it for these seeds stays as it is."""
        there, image = self.secrets(), manifests.image_of(objects, "dataplane")
        about = {host: names.digest(str(there[names.node_secret(host.name)].get("data"))) for host in hosts}
        work = [jobs.write_seeds(host, image, about[host]) for host in hosts]
        self._begin(work)
        return work

    def _begin(self, work: Sequence[Object]) -> None:
        """Make Jobs; one that failed before is made anew, one that runs or is done stays."""
        failed = failed_jobs.take_away(self.api, work)
        self._gone("Jobs that failed before", lambda: [found for one in failed if (found := self.api.get(one))])
        for one in work:
            self.api.create(one)

    def _found_bus(self) -> Object | None:
        return self.api.get(Ref("apps/v1", "StatefulSet", names.NAMESPACE, names.BUS))

    def _runs_signed_bus(self) -> bool:
        """Whether servers run that trust the operator."""
        found = self._found_bus()
        return found is not None and rollout.is_signed(found) and rollout.progress(found).done

    def _end_listed_bus(self, objects: Iterable[Object]) -> None:
        """Servers that list their users and such that trust an operator keep no streams together: where the former run
        and the latter are wanted, all end before the first starts. Users' files hold what both ask for by now.
        """
        wanted: Object = next((one for one in objects if one["kind"] == "StatefulSet"), {})
        found = self._found_bus()
        if found is None or not rollout.is_signed(wanted) or rollout.is_signed(found):
            return
        self._say("the bus lists its users in a file: it starts again with signed accounts, its buckets are refilled")
        self.api.delete(ref(found))
        labels = f"{names.OURS},{names.NAME}={names.BUS}"
        self._gone("servers of the bus", lambda: self.api.items("v1", "Pod", names.NAMESPACE, labels=labels))

    def _pools(self, options: Options) -> None:
        if not options.pools or requirements.pools(self.api):
            return
        for cidr in options.pools.split(","):
            self.api.create(requirements.pool(cidr))
        self._say(f"IPPools made of {options.pools}")

    def _prune(self, past: Iterable[Revision], objects: Iterable[Object]) -> None:
        for away in revisions.gone(past, objects):
            if self.api.delete(away):
                self._say(f"{away} deleted: it is no part of this revision")

    def _await(self, workload: Ref, labels: str, end: float | None = None) -> None:
        """Until a workload runs. Raises `Declined` when it cannot, or does not in time."""
        end, said, pause = self.end_of_wait() if end is None else end, "", self._poll / 10
        while True:
            found = self.api.get(workload)
            seen = rollout.progress(found) if found else rollout.Progress(done=False, text="not there")
            if seen.text != said:
                said = seen.text
                self._say(f"{workload.kind} {workload.name}: {said}")
            if seen.done:
                return
            late = time.monotonic() > end
            held = rollout.obstacle(self.api.items("v1", "Pod", names.NAMESPACE, labels=labels))
            if held is not None and (held.final or late):
                raise Declined(held.sentence, held.remedy)
            if found is not None and found["kind"] == "Job" and rollout.failed(found):
                raise failed_jobs.why(self.api, workload)
            if late:
                raise Declined(
                    f"{workload} is not well within {self.timeout:.0f} s ({seen.text})",
                    f"look at `kubectl --namespace {names.NAMESPACE} get pods`",
                )
            time.sleep(pause)
            pause = min(pause * 1.3, self._poll)

    def _undo(self, past: Sequence[Revision], wanted: Plan, *, first: bool) -> None:
        """Back to the last complete revision; of a first installation nothing is left."""
        if first:
            self._take_seeds_away(wanted)
            # Somebody else's bus knows these keys by now: they stay, as they were before.
            self.take_away(wanted.hosts, wanted.objects, clean=False, keys=not wanted.options.nats)
            return
        last = next(one for one in reversed(past) if one.state == revisions.COMPLETE)
        for one in last.objects:
            self.api.apply(one)
        self._prune([Revision(number=0, state="", tag="", objects=wanted.objects)], last.objects)
        self._forget_after(last)
        self._say(f"revision {last.number}, tag {last.tag}, is applied again")

    def _take_seeds_away(self, wanted: Plan) -> None:
        """From nodes that have got or made theirs; no agent has run to the end of a roll-out yet, but one may have
        begun.
        """
        done = self.api.items("batch/v1", "Job", names.NAMESPACE, labels=f"{names.JOB}={jobs.SEEDS}")
        nodes = {one["spec"]["template"]["spec"]["nodeName"] for one in done if rollout.progress(one).done}
        nodes |= {one["spec"].get("nodeName") for one in self._running(_WORKLOAD_PODS) if rollout.has_begun(one)}
        hosts = [host for host in wanted.hosts if host.name in nodes]
        agents = {one["metadata"]["name"] for one in self.api.items("apps/v1", "DaemonSet", names.NAMESPACE)}
        self._delete_workloads()
        try:
            self._clean(hosts, wanted.objects, with_routing="dataplane" in agents)
        except (Complaint, Refusal) as fault:
            left = ", ".join(host.name for host in hosts)
            self._say(f"what is on nodes {left} could not be taken away: {fault}")

    # Taking away

    def uninstall(self) -> None:
        """Stop the agents, clean each node, then delete every object. Pools and their CRD stay: they are data."""
        past = self.history()
        objects = past[-1].objects if past else ()
        self.take_away(self.hosts(), objects, clean=True)

    def take_away(self, hosts: Sequence[Host], objects: Sequence[Object], *, clean: bool, keys: bool = True) -> None:
        """``clean``: agents have run on the nodes, so that there is something to clean. ``keys``: these go, too."""
        self._delete_workloads()
        if clean and objects:
            self._gone("pods of the bus, services and agents", lambda: self._running(_WORKLOAD_PODS))
            self._clean(hosts, objects)
        for host in hosts:
            self._label(host, on=False)
            self._untaint(host)
        kept = ("Namespace", "CustomResourceDefinition", *WORKLOADS)
        for one in reversed(objects):
            if one["kind"] not in kept:
                self.api.delete(ref(one))
        if not keys:
            for kind, version in (("Job", "batch/v1"), ("ConfigMap", "v1")):
                for one in self.api.items(version, kind, names.NAMESPACE, labels=names.OURS):
                    self.api.delete(ref(one))
            return
        self.api.delete(_NAMESPACE)
        self._gone(f"namespace {names.NAMESPACE}", self._ending_namespace)
        self._say(f"namespace {names.NAMESPACE} deleted, and all that was in it")

    def _delete_workloads(self) -> None:
        for kind in reversed(WORKLOADS):
            for one in self.api.items("apps/v1", kind, names.NAMESPACE, labels=names.OURS):
                self.api.delete(ref(one))
                self._say(f"{kind} {one['metadata']['name']} deleted")

    def _clean(self, hosts: Sequence[Host], objects: Sequence[Object], *, with_routing: bool = True) -> None:
        dataplane = manifests.image_of(objects, "dataplane")
        routing = manifests.image_of(objects, "routing") if with_routing else ""
        about = str((self.api.get(Ref("v1", "Namespace", "", names.NAMESPACE)) or {}).get("metadata", {}).get("uid"))
        work = [jobs.remove(host, dataplane, routing, about) for host in hosts]
        self._begin(work)
        for one in work:
            self.until_done(one)

    def _untaint(self, host: Host) -> None:
        """What `cluster` wrote on the node and nobody would take off any more."""
        at = Ref("v1", "Node", "", host.name)
        node = self.api.get(at) or {}
        for body in requirements.unmarked(node):
            self.api.call("PATCH", at.path, body, "application/merge-patch+json")
        if (status := requirements.without_condition(node)) is not None:
            self.api.call("PATCH", f"{at.path}/status", status, "application/strategic-merge-patch+json")

    def _running(self, labels: str) -> list[Object]:
        return self.api.items("v1", "Pod", names.NAMESPACE, labels=labels)

    def _ending_namespace(self) -> list[Object]:
        found = self.api.get(_NAMESPACE)
        return [found] if found and found["metadata"].get("deletionTimestamp") else []

    def _gone(self, what: str, left: Callable[[], list[Object]]) -> None:
        end = time.monotonic() + self.timeout
        while found := left():
            if time.monotonic() > end:
                first = f"{ref(found[0])}{' and others' if len(found) > 1 else ''}"
                raise Declined(
                    f"{what}: not gone within {self.timeout:.0f} s: {first}",
                    "see whether nodes answer, and what its status says (kubectl get --output yaml)",
                )
            time.sleep(self._poll)


def checksums_of(there: Mapping[str, Object], config: Object, admission: Object) -> dict[str, str]:
    """Of what the bus' servers, and `cluster`, have to be started again for."""
    bus = names.digest(accounts.read_at_start(config), secrets.started_with(there[names.BUS_TLS]))
    return {names.BUS: bus, "cluster": names.digest(str(sorted(admission["data"].items())))}


_NAMESPACE = Ref("v1", "Namespace", "", names.NAMESPACE)
_WORKLOAD_PODS = f"{names.OURS},!{names.JOB}"
"""Pods of the bus, services and agents. While one of them still ends it writes: to folders of its node, or on it."""
