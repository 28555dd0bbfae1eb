"""The commands of `airmesh dns`: what CoreDNS should be, how it answers, and changes of it."""

from __future__ import annotations

import click

from cli import gather, ndots, streams
from cli.command import ask, output_option, show_report, span_option
from cli.faults import Exit
from cli.install import commands as installation
from cli.reports import dns as dns_report
from cli.reports import dns_pods as pod_dns_report
from cli.reports import dns_tuning
from proto.dns import DnsChangeRequest


@click.group(invoke_without_command=True)
@output_option
@click.pass_context
def dns(context: click.Context, output: str) -> int:
    """What CoreDNS should be, why, and how it answers."""
    if context.invoked_subcommand is not None:
        return Exit.WELL
    state = ask(gather.names)
    show_report(state, dns_report.tables(state), output)
    return Exit.WELL


@dns.command("plan")
@output_option
def dns_plan(output: str) -> int:
    """What is tuned, what is proposed on which evidence, and how the latest change goes."""
    state = ask(gather.dns_plan)
    show_report(state, dns_tuning.tables(state), output)
    return Exit.WELL


@dns.command("apply")
@click.argument("name")
@installation.cluster_options
def dns_apply(name: str, kubeconfig: str, context: str) -> int:
    """Apply a proposal: it is written, judged for a minute, and kept or taken back.

    NAME is one of `airmesh dns plan`. "ndots/NAMESPACE" labels the namespace, by your kubeconfig, for pods made from
    then on: a MutatingAdmissionPolicy (Kubernetes 1.36) gives them fewer dots, unless their dnsConfig says another.
    """
    wish = DnsChangeRequest("apply", name)
    said = ndots.asked(ndots.apply, name, kubeconfig, context) or ask(lambda link: gather.change_dns(link, wish))
    click.echo(said)
    return Exit.WELL


@dns.command("revert")
@click.argument("name", default="")
@installation.cluster_options
def dns_revert(name: str, kubeconfig: str, context: str) -> int:
    """Take the latest change of the Corefile back, or what a proposal NAME has set.

    What was taken back is not proposed again for a day. "ndots/NAMESPACE" takes out the label that `apply` has set.
    """
    wish = DnsChangeRequest("revert", name)
    said = ndots.asked(ndots.revert, name, kubeconfig, context) or ask(lambda link: gather.change_dns(link, wish))
    click.echo(said)
    return Exit.WELL


@dns.command("watch")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@span_option
@output_option
def dns_watch(follow: bool, seconds: float, output: str) -> int:
    """Each report, and each step of a change, a line as it comes."""
    streams.tuning(None if follow else seconds, output)
    return Exit.WELL


@dns.command("report")
@click.option("--namespace", "-n", default="", help="Only pods of this namespace.")
@click.option("--node", default="", help="Only pods of this node.")
@output_option
def dns_of_pods(namespace: str, node: str, output: str) -> int:
    """DNS as each pod saw it in the last minute: latency, timeouts, retries, what queries were for, and who asks most.

    Nodes measure on their pods' links, over UDP and TCP. Counts are exact; names, and the share of a search list, come
    from samples. A quantile is the upper bound of a range that begins at its half. A query times out after five
    seconds. A useful answer is one with records: queries for each say what search lists and missing types cost.
    Beside it stand the counts of all CoreDNS servers: answers, cache, and how long each upstream took.

    Exit code 1 when an agent does not answer.
    """
    report = ask(lambda link: gather.pods_dns(link, namespace, node))
    show_report(report, pod_dns_report.tables(report), output)
    return Exit.NOT_WELL if report.silent else Exit.WELL
