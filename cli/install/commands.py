"""`airmesh install`, `upgrade`, `uninstall`, `check`: arguments in, steps of `run.py`, an exit code.

What goes on is said on standard error, a line each; what was asked for (a difference, a report) on standard output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cli import show
from cli.faults import Declined, Exit
from cli.install import bootstrap, changes, findings, networks, node_check, revisions
from cli.install.authority import AuthorityRotation
from cli.install.cluster_check import look as look_at_cluster
from cli.install.kubernetes import Kubernetes, Refusal
from cli.install.options import Options
from cli.install.rotation import Rotation, holders
from cli.install.run import Cluster
from cli.install.signer import SignerRotation
from cli.install.token_steps import Tokens
from cli.install.token_steps import line as token_line
from cli.reports.table import json_text

_Command = Callable[..., Any]
_SETTLE, _LOOK = 30.0, 0.5


def cluster_options(command: _Command) -> _Command:
    """Options that say which cluster."""
    for option in (
        click.option("--context", default="", help="Context of the kubeconfig; the current one unless given."),
        click.option("--kubeconfig", default="", help="Kubeconfig file; KUBECONFIG or ~/.kube/config unless given."),
    ):
        command = option(command)
    return command


def _image_options(command: _Command) -> _Command:
    """Options that say which images, and how long is waited."""
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(1, 86_400),
            default=600.0,
            show_default=True,
            help="Seconds that each workload may take until it runs.",
        ),
        click.option("--dry-run", is_flag=True, help="Change nothing; show the difference as a unified diff."),
        click.option("--tag", default="", help="Tag of the images; that of this release unless given."),
        click.option("--registry", default="", metavar="HOST/PATH", help="Where the images are."),
    ):
        command = option(command)
    return command


def _say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _opened(kubeconfig: str, context: str, what: str, timeout: float = 0.0) -> Iterator[Cluster]:
    """The cluster while the block lasts; whatever the API server refuses is a sentence about ``what`` was done."""
    try:
        with Kubernetes(kubeconfig, context) as api:
            yield Cluster(api, _say, timeout=timeout)
    except Refusal as refusal:
        raise refusal.complaint(what) from refusal


@click.command()
@cluster_options
@click.option("--uplinks", default="", metavar="LINK,…", help="Interfaces that lead from node to node, as in eth0.")
@click.option("--nats", default="", metavar="URL,…", help="A bus that is there already; else one is installed.")
@click.option("--pool", "pools", multiple=True, metavar="CIDR", help="Make IPPools, one a family, where there is none.")
@click.option(
    "--api-server", default="", metavar="HOST:PORT", help="Where nodes reach the API server without kube-proxy."
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of agents, as AIRMESH_CGROUP=…")
@click.option("--migrate", is_flag=True, help="Move in beside another network, node by node (not supported).")
@_image_options
def install(
    kubeconfig: str,
    context: str,
    *,
    timeout: float,
    dry_run: bool,
    migrate: bool,
    pools: tuple[str, ...],
    settings: tuple[str, ...],
    **given: str,
) -> int:
    """Install airmesh into a cluster, or bring an installation to what is asked for.

    Keys and certificates are made once and kept. Run it again after nodes were added, or after an interruption: it goes
    on where it stood. What fails is undone.
    """
    options = Options(pools=",".join(pools), settings="\n".join(settings), **given)
    with _opened(kubeconfig, context, "install", timeout) as cluster:
        if migrate:
            raise Declined(*networks.why_not(networks.look(cluster.api)))
        cluster.check()
        if said := networks.warning(networks.look(cluster.api)):
            _say(said)
        return _bring(cluster, options.over(cluster.remembered()), dry_run=dry_run)


@click.command()
@cluster_options
@click.option("--to", default="", metavar="REVISION", help="Go back: `previous`, or the number of a revision.")
@_image_options
def upgrade(kubeconfig: str, context: str, *, timeout: float, dry_run: bool, to: str, registry: str, tag: str) -> int:
    """Bring an installation to this release, or to other images, or back.

    The bus and the cluster's services first, one copy at a time; then the nodes, one at a time. When something fails,
    the revision before is applied again. The last five revisions are kept.
    """
    with _opened(kubeconfig, context, "upgrade", timeout) as cluster:
        cluster.check()
        past = cluster.history()
        if not past:
            raise Declined("airmesh is not installed in this cluster", "install it: airmesh install")
        if to:
            wanted = revisions.before(past, to)
            if dry_run:
                click.echo("\n".join(changes.differences_of(cluster, wanted.objects)) or "no difference")
                return Exit.WELL
            cluster.go_back(wanted)
            click.echo(f"airmesh is at revision {wanted.number}, tag {wanted.tag}")
            return Exit.WELL
        # Images are those of this release unless said; where they are taken from is remembered.
        options = replace(Options(registry=registry).over(cluster.remembered()), tag=tag)
        return _bring(cluster, options, dry_run=dry_run)


@click.command()
@cluster_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", type=click.FloatRange(1, 86_400), default=600.0, show_default=True, help="Seconds to wait.")
def uninstall(kubeconfig: str, context: str, *, yes: bool, timeout: float) -> int:
    """Take airmesh away: agents, what they made on the nodes, and every object.

    Pods lose their network. IPPools stay, with their kind: they are yours.
    """
    with _opened(kubeconfig, context, "uninstall", timeout) as cluster:
        if not cluster.installed():
            raise Declined("airmesh is not installed in this cluster", "nothing is to be done")
        if not yes:
            click.confirm("Pods of this cluster lose their network. Go on?", abort=True, err=True)
        cluster.uninstall()
    click.echo("airmesh is uninstalled")
    return Exit.WELL


@click.group()
def keys() -> None:
    """Keys of the bus' users."""


@keys.command("accounts")
@cluster_options
def accounts(kubeconfig: str, context: str) -> int:
    """The bus' users and accounts, for the configuration of a NATS server of your own (install --nats).

    Makes the keys that are missing, in the cluster; prints public ones alone. Again after nodes were added.
    """
    with _opened(kubeconfig, context, "keys") as cluster:
        cluster.check()
        click.echo(cluster.accounts(), nl=False)
    return Exit.WELL


@keys.command("bootstrap-token")
@cluster_options
@click.option("--ttl", default="90d", show_default=True, metavar="TIME", help="How long it is good, as in 90d or 12h.")
@click.option("--list", "listing", is_flag=True, help="Make none; show those that are there.")
@click.option("--revoke", default="", metavar="TOKEN", help="Make none; end this one. Another is made for the current.")
@click.option("--timeout", type=click.FloatRange(1, 86_400), default=600.0, show_default=True, help="Seconds to wait.")
def bootstrap_token(kubeconfig: str, context: str, *, ttl: str, listing: bool, revoke: str, timeout: float) -> int:
    """A token by which new nodes' agents may ask for a key.

    It alone lets nobody in: `cluster` asks the API server which pod asks. Nodes have it from a Secret; nothing is to be
    carried anywhere.
    """
    length = bootstrap.seconds(ttl)
    with _opened(kubeconfig, context, "keys", timeout) as cluster:
        cluster.check()
        tokens = Tokens(cluster, _say)
        if not listing:
            made = tokens.revoke(revoke) if revoke else tokens.make(length)
            click.echo(token_line(made, is_current=True))
            return Exit.WELL
        found = tokens.listed()
        for one in found:
            click.echo(token_line(one, is_current=one == found[-1]))
    return Exit.WELL


@keys.command("rotate")
@cluster_options
@click.option("--node", "nodes", multiple=True, metavar="NODE", help="The keys of this node's agents.")
@click.option("--service", "services", multiple=True, metavar="SERVICE", help="The key of this service, or of `cli`.")
@click.option("--all", "everyone", is_flag=True, help="All keys of users.")
@click.option("--authority", is_flag=True, help="The authority of the servers' certificates, and these.")
@click.option("--signer", is_flag=True, help="The key by which `cluster` lets nodes in, and the keys of all nodes.")
@click.option("--now", "at_once", is_flag=True, help="Old keys were stolen: end them before anybody has new ones.")
@click.option("--timeout", type=click.FloatRange(1, 86_400), default=600.0, show_default=True, help="Seconds for each.")
def rotate(
    kubeconfig: str,
    context: str,
    *,
    nodes: tuple[str, ...],
    services: tuple[str, ...],
    everyone: bool,
    at_once: bool,
    timeout: float,
    **bus: bool,
) -> int:
    """New keys for users of the bus, or for its servers: each agent signs in again once, and the old key is void.

    Old and new are both good until nobody is connected by the old one. What was interrupted goes on when it is run
    again. Nothing starts anew. A node makes its new keys itself.
    """
    with _opened(kubeconfig, context, "keys", timeout) as cluster:
        cluster.check()
        done = []
        if nodes or services or everyone or not any(bus.values()):
            rotation = Rotation(cluster, _say)
            wanted = holders(cluster.hosts(), nodes, services, everyone=everyone)
            rotation.rotate(wanted, at_once=at_once)
            done = [holder.name for holder in wanted]
        if bus["authority"]:
            AuthorityRotation(cluster, _say).rotate(at_once=at_once)
            done.append("the bus' authority")
        if bus["signer"]:
            SignerRotation(cluster, _say).rotate(at_once=at_once)
            done.append("who signs for nodes, all nodes")
    click.echo(f"new keys: {', '.join(done)}")
    return Exit.WELL


@click.command()
@cluster_options
@click.option("--node", is_flag=True, help="Look at this machine instead: does it have what a node needs?")
@click.option("--cni-conf", default="/etc/cni/net.d", show_default=True, help="With --node: the runtime's conf_dir.")
@click.option("--cni-bin", default="/opt/cni/bin", show_default=True, help="With --node: the runtime's bin_dir.")
@click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check(kubeconfig: str, context: str, *, node: bool, cni_conf: str, cni_bin: str, output: str) -> int:
    """Is everything there that airmesh needs, and does it run?

    Exit code 1 when something is wrong; each finding is one sentence with its remedy.
    """
    if node:
        seen, folders = node_check.look(Path(cni_conf), Path(cni_bin))
        report = findings.report("this node", node_check.judge(seen, folders))
    else:
        with _opened(kubeconfig, context, "check") as cluster:
            report = findings.report("the cluster", look_at_cluster(cluster.api))
    if output == "json":
        click.echo(json_text(report))
    else:
        show.tables(show.console(), findings.tables(report))
    return Exit.WELL if report.well else Exit.NOT_WELL


def _settled(cluster: Cluster) -> findings.Findings:
    """What the check finds once all is well, or when that has taken long: a node says that it is ready a moment after
    its agents run.
    """
    end = time.monotonic() + min(_SETTLE, cluster.timeout / 4)
    while True:
        report = findings.report("the cluster", look_at_cluster(cluster.api))
        if report.well or time.monotonic() > end:
            return report
        time.sleep(_LOOK)


def _bring(cluster: Cluster, options: Options, *, dry_run: bool) -> int:
    wanted = cluster.plan(options)
    if dry_run:
        click.echo("\n".join(changes.differences(cluster, wanted)) or "no difference")
        return Exit.WELL
    revision = cluster.install(wanted)
    report = _settled(cluster)
    if not report.well:
        show.tables(show.console(), findings.tables(report))
    click.echo(f"airmesh is installed: revision {revision.number}, tag {revision.tag}")
    return Exit.WELL if report.well else Exit.NOT_WELL
