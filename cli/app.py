"""The commands of `airmesh`: arguments in, a report or a stream out, an exit code.

Every command ends within the deadline (3 s, `doctor` 9 s; what follows a stream ends with Ctrl-C or `--for`).
`--output json` prints the report with stable field names, one object; streams print one object a line, and say on
standard error when they have begun to listen.
"""

from __future__ import annotations

import os
import sys

import click
from click.shell_completion import get_completion_class

from cli import faults, gather, repair, show, streams
from cli.command import ask, output_option, show_report, span_option
from cli.dns import dns
from cli.faults import Complaint, Exit
from cli.install import commands as installation
from cli.reports import agents
from cli.reports import bgp as bgp_report
from cli.reports import doctor as doctor_report
from cli.reports import flows as flow_report
from cli.reports import ipam as ipam_report
from cli.reports import pairs as pair_report
from cli.reports import pods as pod_report
from cli.reports import policy as policy_report
from cli.reports import routes as route_report
from cli.reports import trace as trace_report
from cli.streams import DOCTOR_SECONDS
from proto.bgp import BgpRoutesRequest, RoutesTable

_SHELLS = ("bash", "zsh", "fish")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def airmesh() -> None:
    """See what a mesh is doing, and why.

    Speaks only NATS, but for install, upgrade, uninstall, check, keys and dns apply ndots, which speak to Kubernetes:
    AIRMESH_NATS names the server, AIRMESH_NATS_SEED_FILE the file with the user's seed. For a lab,
    eval "$(airmesh lab env)" sets both.

    Exit codes: 0 well; 1 the answer is no (something is not well, a connection is denied, a node lags); 2 wrong usage;
    3 NATS does not answer; 4 refused, or nobody serves it.
    """


@airmesh.command()
@output_option
def status(output: str) -> int:
    """Agents, nodes, and what is not well.

    Exit code 1 when anything is not well.
    """
    report = ask(gather.status)
    show_report(report, agents.tables(report), output)
    return Exit.WELL if report.well else Exit.NOT_WELL


@airmesh.command()
@click.option("--namespace", "-n", default="", help="Only pods of this namespace.")
@output_option
def pods(namespace: str, output: str) -> int:
    """Pods with their addresses, nodes and identities."""
    report = ask(lambda link: gather.running(link, namespace))
    show_report(report, pod_report.tables(report), output)
    return Exit.WELL


@airmesh.command()
@click.argument("target", nargs=-1, metavar="[TARGET]")
@click.option("--fix", is_flag=True, help="Apply what may be applied, verify it, take back what does not help.")
@click.option("--by", default="", metavar="COMMAND", help='How you reach a node, for --fix: "ssh root@{node}".')
@click.option("--yes", is_flag=True, help="Agree to every command of --fix unseen.")
@click.option("--watch", is_flag=True, help="Print findings of all agents' standing checks as they come and go.")
@click.option("--family", type=click.Choice(["4", "6"]), help="Of a connection: follow packets of this family alone.")
@output_option
def doctor(target: tuple[str, ...], fix: bool, by: str, yes: bool, watch: bool, family: str | None, output: str) -> int:
    """What is wrong in the mesh: the cause first, with its evidence and its fix, and what follows from it.

    Without TARGET, everything. TARGET is "node NODE", "service NAMESPACE/NAME", "policy NAMESPACE/NAME", "dns", or a
    connection: SOURCE TARGET as `airmesh policy explain` takes them. Each agent looks at its own part: routes, rules of
    firewalls, neighbours, sockets, maps and objects. One that does not answer within six seconds is a finding itself.

    Of a connection from a pod, a packet there and one back are followed through the programs of both nodes, which are
    asked and send nothing; of a Service, to each endpoint (eight at most). Findings about others are left out.

    With --fix, each fix that only removes or resets what its finding shows is shown and, when you agree, run on the
    node by the command of --by, and verified by another diagnosis; others are left to you.

    Exit code 1 when anything is found, or a packet of the connection does not arrive.
    """
    if watch and (target or fix or family):
        raise faults.Usage("--watch is of the whole mesh, and only looks", "give it no TARGET, --fix or --family")
    if watch:
        streams.findings(output)
    asked = doctor_report.question(*target)
    if asked is None:
        raise faults.Usage(f"{' '.join(target)!r} is nothing to look at", f"write {doctor_report.GRAMMAR}")
    if family and asked.kind != "connection":
        raise faults.Usage("--family is of a connection alone", "name one: SOURCE TARGET, or leave --family out")
    way, of_family = repair.check_way(by) if fix else "", int(family or 0)

    def diagnosis() -> doctor_report.Diagnosis:
        return ask(lambda link: gather.doctor(link, asked, DOCTOR_SECONDS, of_family), DOCTOR_SECONDS + 3)

    report = diagnosis()
    if fix:
        repaired = doctor_report.Repaired(
            applied=repair.apply(report, way, diagnosis, (lambda *_: True) if yes else show.agreed), after=diagnosis()
        )
        show_report(repaired, doctor_report.repaired_tables(repaired), output)
        return Exit.WELL if repaired.after.well else Exit.NOT_WELL
    show_report(report, doctor_report.tables(report), output)
    return Exit.WELL if report.well else Exit.NOT_WELL


@airmesh.group()
def policy() -> None:
    """What policy says, and where it is enforced."""


@policy.command("explain")
@click.argument("source")
@click.argument("target")
@output_option
def explain(source: str, target: str, output: str) -> int:
    """May SOURCE open a connection to TARGET, and why.

    SOURCE is NAMESPACE/POD or an address; TARGET is NAMESPACE/POD:PORT[/PROTOCOL] or ADDRESS:PORT[/PROTOCOL], protocol
    tcp unless said otherwise, an IPv6 address in brackets.

    Exit code 0 when allowed, 1 when denied.
    """
    asked = policy_report.question(source, target)
    report = ask(lambda link: gather.explain(link, asked))
    show_report(report, policy_report.verdict_tables(report), output)
    return Exit.WELL if report.allowed else Exit.NOT_WELL


@policy.command("matrix")
@output_option
def matrix(output: str) -> int:
    """Many questions at once: lines "SOURCE TARGET" on standard input, as explain takes them."""
    lines = [line.split() for line in sys.stdin if line.strip()]
    for number, words in enumerate(lines, 1):
        if len(words) != 2:
            raise faults.Usage(f"question {number} has {len(words)} words", "write SOURCE TARGET on each line")
    asked = tuple(policy_report.question(source, target) for source, target in lines)
    report = ask(lambda link: gather.matrix(link, asked))
    show_report(report, policy_report.matrix_tables(report), output)
    return Exit.WELL


@policy.command("status")
@output_option
def policy_status(output: str) -> int:
    """Which revision of policy each node's kernel holds.

    Exit code 1 while any node lags.
    """
    report = ask(gather.policy_status)
    show_report(report, policy_report.status_tables(report), output)
    return Exit.WELL if report.enforced_everywhere else Exit.NOT_WELL


@airmesh.group()
def ipam() -> None:
    """Addresses: pools, blocks, and what owners keep."""


@ipam.command("show")
@click.option("--blocks", is_flag=True, help="Only pools and blocks.")
@click.option("--claims", is_flag=True, help="Only pools and kept addresses.")
@output_option
def ipam_show(blocks: bool, claims: bool, output: str) -> int:
    """Pools, the blocks that nodes hold, the addresses that owners keep.

    Exit code 1 when ipam reports a problem (say, pools that overlap).
    """
    report = ask(gather.addresses)
    show_report(report, ipam_report.tables(report, blocks=blocks, claims=claims), output)
    return Exit.NOT_WELL if report.problems else Exit.WELL


@airmesh.group(invoke_without_command=True)
@click.option("--node", default="", help="Only pairs with this node, and what is reached through it.")
@output_option
@click.pass_context
def routes(context: click.Context, node: str, output: str) -> int:
    """By which model each node reaches each other's pods, and which prefix lies behind which node.

    Each end of a pair says what its own kernel does: model, next hop, device, the largest packet that fits, since when,
    and whether that is what was asked for (taken), another is being laid (pending), or did not work (given up).

    Exit code 1 when a node has no way to another.
    """
    if context.invoked_subcommand is not None:
        return Exit.WELL
    report = ask(lambda link: gather.offered(link, node))
    show_report(report, route_report.tables(report), output)
    return Exit.WELL if report.well else Exit.NOT_WELL


@routes.command("explain")
@click.argument("node")
@click.argument("peer", metavar="NODE")
@output_option
def routes_explain(node: str, peer: str, output: str) -> int:
    """Why packets between NODE and NODE go as they do: what was asked for, chosen, measured and when, at both ends.

    Exit code 1 when an end does not answer, or has no way to the other.
    """
    if node == peer:
        raise faults.Usage(f"{node} is named twice", "name two nodes: airmesh routes explain n1 n2")
    report = ask(lambda link: gather.pair(link, (node, peer)))
    show_report(report, pair_report.explained_tables(report), output)
    return Exit.WELL if report.well else Exit.NOT_WELL


@airmesh.group(invoke_without_command=True)
@click.option("--node", default="", help="Only sessions of this node.")
@click.option("--down", is_flag=True, help="Only sessions that are not established.")
@output_option
@click.pass_context
def bgp(context: click.Context, node: str, down: bool, output: str) -> int:
    """BGP sessions of all nodes: with whom, since when, how many prefixes; why one is down, and what to do.

    Each node's agent says what its own speaker knows. A peer is named BGPPEER/ADDRESS, or mesh/NODE in the node-to-node
    mesh.

    Exit code 1 when a session that is asked for is not established, cannot be held, or an agent does not answer.
    """
    if context.invoked_subcommand is not None:
        return Exit.WELL
    report = ask(lambda link: gather.bgp_sessions(link, node, down=down))
    show_report(report, bgp_report.session_tables(report), output)
    return Exit.WELL if report.well else Exit.NOT_WELL


@bgp.command("routes")
@click.argument("prefix", required=False, default="")
@click.option("--node", required=True, help="Whose tables.")
@click.option("--peer", default="", help="Only what this peer sent, or is sent: its name, BGPPeer, address or node.")
@click.option("--received", "table", flag_value="received", help="What peers sent, with what policy rejected.")
@click.option("--sent", "table", flag_value="sent", help="What peers are sent, as it is sent.")
@output_option
def bgp_routes(prefix: str, node: str, peer: str, table: RoutesTable | None, output: str) -> int:
    """Paths that NODE's BGP speaker has, which of them are used, and why.

    Of PREFIX (an address stands for itself), and of those that hold it, also what was rejected, or is not sent.
    Without, the first thousand of all. With --peer, what that peer sent, unless --sent.

    Exit code 1 when PREFIX is named, and no path is used, received or sent.
    """
    network = bgp_report.prefix_named(prefix) if prefix else None
    if prefix and network is None:
        raise faults.Usage(f"{prefix!r} is no prefix", "write it as 10.1.0.0/16 or fd00::/64, or an address")
    wanted: RoutesTable = table or ("received" if peer else "chosen")
    asked = BgpRoutesRequest(node=node, table=wanted, prefix=network, peer=peer)
    report = ask(lambda link: gather.bgp_routes(link, asked))
    show_report(report, bgp_report.route_tables(report), output)
    return Exit.WELL if report.well else Exit.NOT_WELL


@bgp.command("capture")
@click.argument("peer", required=False, default="")
@click.option("--node", default="", help="Only sessions of this node.")
@click.option("--count", type=click.IntRange(1), help="End after so many messages; else with Ctrl-C.")
@output_option
def bgp_capture(peer: str, node: str, count: int | None, output: str) -> int:
    """BGP messages of sessions as they are received and sent: attributes, prefixes, and what is wrong with them.

    PEER is a peer's name, BGPPeer, address or node, as `airmesh bgp` lists it; without, all sessions. What is wrong is
    said with what became of it by RFC 7606: an attribute was discarded, the prefixes were treated as withdrawn, or the
    session was reset. An agent captures only while it is asked. It keeps 1,000 messages, or a megabyte, between two
    questions and says how many found no room; of each part of an UPDATE it tells the first 64 prefixes.
    """
    streams.capture(node, peer, count, output)
    return Exit.WELL


@airmesh.command()
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--dropped", is_flag=True, help="Only what was dropped.")
@click.option("--pod", default="", metavar="NAMESPACE/NAME", help="Only flows from or to this pod.")
@span_option
@output_option
def flows(follow: bool, dropped: bool, pod: str, seconds: float, output: str) -> int:
    """Packets as they are dropped or let through, each with what decided it."""
    streams.flows(None if follow else seconds, dropped, flow_report.check_pod(pod) if pod else "", output)
    return Exit.WELL


@airmesh.command()
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@span_option
@output_option
def events(follow: bool, seconds: float, output: str) -> int:
    """What the mesh tells its consumers, as it happens."""
    streams.events(None if follow else seconds, output)
    return Exit.WELL


for _command in (
    installation.install,
    installation.upgrade,
    installation.uninstall,
    installation.check,
    installation.keys,
    dns,
):
    airmesh.add_command(_command)


@airmesh.command()
@click.argument("target", nargs=-1, required=True, metavar="[KIND] TARGET")
@output_option
def trace(target: tuple[str, ...], output: str) -> int:
    """What became of the last change of TARGET, step by step, down to the kernels that it changed.

    TARGET is NAMESPACE/NAME, or a trace id (32 hex digits, as log lines and events have it). KIND is pod, policy or
    service, and needed where the name is that of several; a Service changes with its EndpointSlices. "node NODE" is how
    that node is reached, in all kernels; "dns" is CoreDNS' configuration; "route PREFIX [NODE]" is what BGP peers said
    of a prefix last, on NODE or wherever that was. Agents keep their latest spans in memory: no tracing backend is
    needed. Of an object that is gone, its removal.

    Exit code 1 when a step failed, or nothing is kept of it any more.
    """
    asked = trace_report.target(*target)
    if asked is None:
        raise faults.Usage(f"{' '.join(target)!r} is nothing that can be traced", f"write {trace_report.GRAMMAR}")
    report = ask(lambda link: gather.change(link, asked))
    show_report(report, trace_report.tables(report), output)
    return Exit.WELL if report.well else Exit.NOT_WELL


@airmesh.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lab(arguments: tuple[str, ...]) -> int:
    """A Kubernetes in network namespaces on this machine: up, down, status, env, list.

    Everything after `lab` goes to the lab's own command; `airmesh lab --help` tells what it takes.
    """
    os.execv(sys.executable, [sys.executable, "-P", "-m", "lab", *arguments])  # noqa: S606 - the arguments are no shell's


@airmesh.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> int:
    """Shell completion: eval "$(airmesh completion bash)", likewise zsh and fish."""
    kind = get_completion_class(shell)
    if kind is None:
        raise faults.Usage(f"no completion for {shell}", f"use one of {', '.join(_SHELLS)}")
    click.echo(kind(airmesh, {}, "airmesh", "_AIRMESH_COMPLETE").source())
    return Exit.WELL


def run(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code. Whatever happens, no traceback."""
    try:
        code = airmesh.main(arguments, prog_name="airmesh", standalone_mode=False, complete_var="_AIRMESH_COMPLETE")
    except Complaint as complaint:
        click.echo(f"airmesh: {complaint}", err=True)
        return complaint.code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.WELL
    except Exception as error:
        click.echo(f"airmesh: a fault of this program: {type(error).__name__}: {error}", err=True)
        click.echo("  remedy: report it, with the command you ran", err=True)
        return Exit.BUG
    return code if isinstance(code, int) else Exit.WELL
