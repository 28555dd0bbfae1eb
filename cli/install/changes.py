"""`--dry-run`: what would change, as the API server itself says how each object would be. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cli.install import accounts, bootstrap, names, revisions, secrets
from cli.install.differences import difference
from cli.install.kinds import Object, ref
from cli.install.kubernetes import Refusal
from cli.install.run import Cluster, Plan, checksums_of


def differences(cluster: Cluster, wanted: Plan) -> list[str]:
    """What an installation would change, as a unified diff: the API server itself says how it would be."""
    there, lines = cluster.secrets(), list[str]()
    hosts = wanted.with_secrets(there)
    for one in secrets.missing_keys(there, hosts):
        lines += difference(None, one)
    if wanted.servers:
        for one in accounts.missing_operator(there):
            lines += difference(there.get(names.OPERATOR), one)
    checksums = {}
    if names.BUS_SECRET in there and wanted.servers and not lines:
        by = accounts.issuer(there)
        for one in accounts.signed_keys(there, hosts, by):
            lines += difference(there[one["metadata"]["name"]], one)
        for one in bootstrap.missing(there, by, int(time.time())):
            lines += difference(there.get(names.BOOTSTRAP), one)
        config, admission = accounts.bus_config(there, wanted.servers, by), accounts.for_cluster(there, by)
        lines += difference(there.get(names.BUS_CONFIG), config)
        lines += difference(there.get(names.ADMISSION), admission)
        checksums = checksums_of(there, config, admission)
    return lines + differences_of(cluster, wanted.fitted(checksums))


def differences_of(cluster: Cluster, objects: Sequence[Object]) -> list[str]:
    """The same of these objects alone."""
    lines: list[str] = []
    for one in objects:
        live = cluster.api.get(ref(one))
        try:
            after = cluster.api.apply(one, dry_run=True)
        except Refusal as refusal:
            if refusal.status != 404:  # its namespace or kind is not there yet
                raise
            after = one
        lines += difference(live, after)
    for away in revisions.gone(cluster.history(), objects):
        lines += difference(cluster.api.get(away), None)
    return lines
