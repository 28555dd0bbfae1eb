"""`python -m lab`: up, down, status, env, list, fabric, build, preflight, and the tour. Parses, calls, prints; decides
nothing.
"""

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Sequence

from lab.cluster import down, fabric, faults, models, preflight, status, switches, up
from lab.cluster.record import Install, Record
from lab.cluster.sessions import Bfd
from lab.images import build, contents
from lab.paths import Paths, paths, settings
from lab.topology import Fabric, LabError, SwitchDaemon

DEFAULT_NAME = "air"
SWITCH_ACTIONS = ("kill", "start", "cut", "lose", "mend")


def _say(text: str) -> None:
    print(text, flush=True)


def _up(options: argparse.Namespace) -> int:
    install = Install.NOTHING if options.without_mesh else Install(options.install)
    wanted = Record(
        lab=options.name,
        nodes=options.nodes,
        install=install,
        fabric=Fabric(options.fabric),
        fabric_mtu=options.fabric_mtu,
        switch=SwitchDaemon(options.switch),
        bfd=Bfd(options.bfd),
        model=options.model,
    )
    asyncio.run(up.up(wanted, settings(), _say, tag=options.tag))
    return 0


def _down(options: argparse.Namespace) -> int:
    left = down.down(paths(options.name, settings()), _say)
    for one in left:
        _say(f"  left: {one.kind} {one.what}")
    return 1 if left else 0


def _status(options: argparse.Namespace) -> int:
    return asyncio.run(status.show(paths(options.name, settings()), _say))


def _env(options: argparse.Namespace) -> int:
    where = paths(options.lab or options.name, settings())
    for line in status.environment_lines(where):
        _say(line)
    return 0


def _list(_: argparse.Namespace) -> int:
    for line in asyncio.run(status.labs(settings())):
        _say(line)
    return 0


def _fabric(options: argparse.Namespace) -> int:
    """Show the fabric; `filter` makes what is given the router's only filters, `mtu` its MTU; others are a switch's."""
    where = paths(options.name, settings())
    if options.action in SWITCH_ACTIONS:
        _switch(where, options.action, options.values)
    elif options.action == "filter":
        fabric.set_filters(where, [fabric.parse_filter(text) for text in options.values])
    elif options.action == "mtu":
        if len(options.values) != 1 or not options.values[0].isdigit():
            raise LabError("fabric mtu: give one number of bytes")
        fabric.set_mtu(where, int(options.values[0]))
    elif options.values:
        raise LabError(f"fabric show: {options.values[0]!r} is nothing to show")
    _say(fabric.summary(where))
    return 0


def _break(options: argparse.Namespace) -> int:
    """Inject a fault; without a name say which there are."""
    where = paths(options.name, settings())
    if not options.fault:
        for one in faults.known().values():
            _say(f"{one.name:28}{one.what}")
        return 0
    fault = faults.break_(where, options.fault)
    _say(f"{fault.what} airmesh doctor should say {fault.finds}; mend with: lab mend {fault.name}")
    return 0


def _mend(options: argparse.Namespace) -> int:
    for name in faults.mend(paths(options.name, settings()), options.fault):
        _say(f"mended: {name}")
    return 0


def _switch(where: Paths, action: str, values: Sequence[str]) -> None:
    if not values:
        raise LabError(f"fabric {action}: name a switch, as in tor-a")
    name, *hosts = values
    if action in {"kill", "start"}:
        if hosts:
            raise LabError(f"fabric {action}: {hosts[0]!r} is one too many; name a switch alone")
        asyncio.run(switches.kill(where, name) if action == "kill" else switches.restart(where, name))
    else:
        {"cut": switches.cut, "lose": switches.lose, "mend": switches.mend}[action](where, name, hosts)


def _build(options: argparse.Namespace) -> int:
    """Build what a lab needs. With --if-possible a machine without compilers is told so, and that is all."""
    try:
        products = asyncio.run(build.build_all(build.TARGETS, settings().cache, _say))
        contents.build(products, settings().cache)
    except LabError as lack:
        if not options.if_possible:
            raise
        _say(f"lab: not built here: {lack}")
    return 0


def _preflight(_: argparse.Namespace) -> int:
    return preflight.report(_say)


def _other(options: argparse.Namespace) -> int:
    module = importlib.import_module(f"lab.{options.command}.run")
    return int(module.run(paths(options.name, settings())))


def _ask_for_a_lab(one: argparse.ArgumentParser) -> None:
    """What `up` may be asked for."""
    one.add_argument("--nodes", type=int, default=3)
    one.add_argument("--without-mesh", action="store_true", help="Kubernetes only; nodes stay NotReady")
    one.add_argument(
        "--install",
        choices=[str(one) for one in Install],
        default=str(Install.PROCESSES),
        help="agents are processes of the lab, or pods that `airmesh install` brings (after `make images`)",
    )
    one.add_argument("--tag", default="", help="of the images, with --install pods")
    one.add_argument(
        "--fabric",
        choices=[str(one) for one in Fabric],
        default=str(Fabric.FLAT),
        help="the nodes' network: one layer-2 network, two with a router between, or links to two BGP switches",
    )
    one.add_argument(
        "--switch",
        choices=[str(one) for one in SwitchDaemon],
        default=str(SwitchDaemon.BIRD),
        help="what the switches of --fabric tor run",
    )
    one.add_argument(
        "--bfd",
        choices=[str(one) for one in Bfd],
        default=str(Bfd.GRACEFUL),
        help="when BFD loses a node, these switches take its routes away (on) or let its speaker restart",
    )
    one.add_argument("--fabric-mtu", type=int, default=0, help="of the way between the segments (1280 to 1500)")
    one.add_argument(
        "--model",
        choices=["", *models.MODELS],
        default="",
        help="of routing, that pools ask for; a lab that is up changes to it",
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m lab", description="A Kubernetes in network namespaces, with airmesh.")
    verbs = top.add_subparsers(dest="command", required=True)
    for verb, function, text in (
        ("up", _up, "bring a lab up; one that is up stays as it is"),
        ("down", _down, "remove a lab, and prove it"),
        ("status", _status, "processes, nodes and pods of a lab"),
        ("env", _env, "shell lines that point kubectl and airmesh at a lab"),
        ("tour", _other, "the main job: apply the shop, connect everything, print what happened"),
        ("list", _list, "the labs on this machine"),
        ("fabric", _fabric, "the network between the nodes, and faults of its router or switches"),
        ("break", _break, "inject a fault that `airmesh doctor` has to find; without a name list them"),
        ("mend", _mend, "take a fault back, or all"),
        ("build", _build, "build what is missing and stop"),
        ("preflight", _preflight, "what this machine lacks, with the remedies"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.set_defaults(function=function)
        if verb in {"up", "down", "status", "env", "fabric", "tour", "break", "mend"}:
            one.add_argument("--name", default=os.environ.get("LAB", DEFAULT_NAME), help="the lab's name")
        if verb == "up":
            _ask_for_a_lab(one)
        if verb == "fabric":
            one.add_argument("action", nargs="?", choices=["show", "filter", "mtu", *SWITCH_ACTIONS], default="show")
            one.add_argument(
                "values",
                nargs="*",
                help="of filter: proto:4, udp:4789; none: all passes. Of mtu: bytes. Of kill and start: a switch. "
                "Of cut, lose and mend: a switch, and hosts; none: all its links",
            )
        if verb in {"break", "mend"}:
            one.add_argument("fault", nargs="?", default="", help="its name: a script of tests/drills/faults")
        if verb == "env":
            one.add_argument("lab", nargs="?", help="the lab's name")
        if verb == "build":
            one.add_argument("--if-possible", action="store_true", help="no error where there are no compilers")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 not done (said why), 2 wrong use."""
    options = parser().parse_args(arguments)
    os.umask(0o022)
    try:
        return int(options.function(options))
    except LabError as fault:
        print(f"lab: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; `python -m lab down` removes what is there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
