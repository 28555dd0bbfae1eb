"""The bus' servers that run are given accounts, and asked who is connected: by a Job, where nodes reach them.

Whoever installs need not reach the bus. A run that was killed leaves a Job and its Secret; the next one clears them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from cli.faults import Declined
from cli.install import accounts, failed_jobs, jobs, names, secrets
from cli.install import render as manifests
from cli.install.kinds import Object, Ref
from cli.install.kubernetes import Kubernetes
from cli.install.secrets import Host


def secrets_of(api: Kubernetes) -> dict[str, Object]:
    """Our Secrets by name."""
    return {one["metadata"]["name"]: one for one in api.items("v1", "Secret", names.NAMESPACE)}


class BusAccounts:
    """Of one installation. ``until_done`` waits for a Job, until a moment (monotonic) where one is given; it raises
    `Declined`.
    """

    def __init__(
        self, api: Kubernetes, say: Callable[[str], None], until_done: Callable[[Object, float | None], None]
    ) -> None:
        self._api, self._say, self._until_done = api, say, until_done

    def admit(self, objects: Sequence[Object], hosts: Sequence[Host], *, ending: bool) -> None:
        """Give the servers that run the accounts of services and nodes; those of nodes that are gone let nobody in.

        ``ending``: nor do those of an earlier release, since nodes have what takes their place.
        """
        there = secrets_of(self._api)
        if names.OPERATOR not in there:
            return
        by = accounts.issuer(there)
        left, given = accounts.gone(there, hosts, by)
        given += accounts.of_services(there, by).values()
        for host in secrets.seeded(there, hosts):
            given += accounts.of_host(there, host, by)
            given += accounts.ended(there, host, by) if ending else ()
        self.hand_over(objects, given)
        for name in left:
            self._api.delete(Ref("v1", "Secret", names.NAMESPACE, name))

    def hand_over(self, objects: Sequence[Object], given: Sequence[str]) -> None:
        """Have the bus' servers take accounts; what a run before left is cleared away first. Raises `Declined`."""
        self._clear_left()
        for first in range(0, len(given), accounts.MOST):
            self.on_bus(objects, given[first : first + accounts.MOST], {})
        self._say(f"the bus has {len(given)} accounts")

    def on_bus(self, objects: Sequence[Object], given: Sequence[str], waits: Mapping[str, object]) -> None:
        """Run the Job that hands over accounts, or waits for users to take their keys. Raises `Declined`."""
        self.finish(self.begin(objects, given, waits))

    def on_servers(self, objects: Sequence[Object], wanted: Mapping[str, object], authorities: str) -> None:
        """Run the Job until servers show a certificate, or all who are connected trust an authority: as ``Servers`` of
        `services/cluster/accounts.py`. It trusts ``authorities``, whatever others do. Raises `Declined`.
        """
        self._clear_left()
        name = _new_name()
        self._api.create(accounts.servers_secret(secrets_of(self._api), name, wanted, authorities))
        self.finish(self._started(name, objects, authority=True))

    def begin(self, objects: Sequence[Object], given: Sequence[str], waits: Mapping[str, object]) -> Object:
        """The Job of :meth:`on_bus`, which runs from now on."""
        name = _new_name()
        self._api.create(accounts.job_secret(secrets_of(self._api), name, given, waits))
        return self._started(name, objects)

    def finish(self, work: Object, end: float | None = None) -> None:
        """Until a Job that was begun is done, by ``end`` (monotonic) where several share their time; then it is cleared
        away. Raises `Declined`.
        """
        name = work["metadata"]["name"]
        try:
            self._until_done(work, end)
        except Declined as declined:
            said = self._last_word(name)
            raise (Declined(said, declined.remedy) if said else declined) from declined
        finally:
            self._clear(name)

    def _started(self, name: str, objects: Sequence[Object], *, authority: bool = False) -> Object:
        image, settings = manifests.image_of(objects, "cluster"), manifests.settings_of(objects)
        work = jobs.hand_over(name, image, settings, authority=authority)
        try:
            self._api.create(work)
        except BaseException:
            self._clear(name)
            raise
        return work

    def _clear_left(self) -> None:
        work = self._api.items("batch/v1", "Job", names.NAMESPACE, labels=f"{names.JOB}={jobs.ACCOUNTS}")
        # The Secret is made first, and goes last: it may be there alone.
        left = {one["metadata"]["name"] for one in work} | {one for one in secrets_of(self._api) if _is_work(one)}
        for name in sorted(left):
            self._clear(name)

    def _clear(self, name: str) -> None:
        self._api.delete(Ref("batch/v1", "Job", names.NAMESPACE, name))
        self._api.delete(Ref("v1", "Secret", names.NAMESPACE, name))

    def _last_word(self, job: str) -> str:
        own = [one["metadata"]["name"] for one in failed_jobs.pods_of(self._api, job)]
        said = [self._api.log_of(names.NAMESPACE, one, jobs.ACCOUNTS, lines=1) for one in own]
        return next((text for text in said if text), "")


_PREFIX = f"airmesh-{jobs.ACCOUNTS}-"


def _new_name() -> str:
    return f"{_PREFIX}{names.digest(str(time.time_ns()))}"


def _is_work(secret: str) -> bool:
    return secret.startswith(_PREFIX)
