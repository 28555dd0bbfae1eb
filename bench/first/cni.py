"""CNI ADD and DEL of the real executable beside Debian's `ptp` with `host-local`, one at a time (rested and not) and
8 at a time.

    python -m bench.first.cni [ROUNDS] [PODS]

The runtime's side is `spawner`: the executable is started as containerd starts it, in the node's network namespace.
The kubelet of the node stands still, so that pods can be bound to it that nobody else starts; their objects have
reached the node before the first ADD (a warm-up round, which does not count). `ptp` runs twice in each round: in the
same namespace as airmesh's agent, which then hears of its links too, and in an empty namespace of its own, where
nothing disturbs it. airmesh gives each pod an address of both families, programs, policy, and an fsynced journal;
`ptp` one IPv4 address and a route, without fsync.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.first.figures import compare, percentile, spawned, table
from bench.first.stage import Stage, stage

NODE = "n1"
MODES = ((1, 60), (1, 0), (8, 0))
"""How many at once, and how many milliseconds of rest before each start."""
PTP = Path("/usr/lib/cni")


Mode = tuple[int, int]
Call = tuple[str, Mode]
"""A verb, and how it was called."""


@dataclass(slots=True, kw_only=True)
class Variant:
    """One plugin where it runs. `pods`: what each pod adds to its environment."""

    name: str
    netns: str
    program: Path
    configuration: Path
    pods: list[dict[str, str]]
    took: dict[Call, list[tuple[float, ...]]] = field(default_factory=dict)
    walls: dict[Call, list[float]] = field(default_factory=dict)
    settled: list[float] = field(default_factory=list)
    """Seconds after the last DEL until no pod had its interface any more."""


def sandboxes(on: Stage, label: str, count: int) -> list[str]:
    """Network namespaces as a runtime makes them for pods."""
    return [on.namespace(f"{label}{number}") for number in range(count)]


def ours(on: Stage, pods: int) -> Variant:
    """airmesh's executable, with pods that the node knows."""
    namespace = on.pods_namespace()
    container = {"name": "none", "image": "lab.local/shop:1"}
    on.apply(
        *(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"p{number}", "namespace": namespace},
                "spec": {"nodeName": NODE, "containers": [container]},
            }
            for number in range(pods)
        )
    )
    on.finally_(
        lambda: on.kubectl("delete", "pod", "-n", namespace, "--all", "--force", "--grace-period=0", "--wait=false")
    )
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in on.get("pods", "-n", namespace)["items"]}
    of = on.where.node(NODE)
    listed = json.loads((of.cni_conf / "10-airmesh.conflist").read_text())
    configuration = on.scratch / "airmesh.json"
    configuration.write_text(
        json.dumps({"cniVersion": listed["cniVersion"], "name": listed["name"], **listed["plugins"][0]})
    )
    arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}"
    return Variant(
        name="airmesh",
        netns=on.node(NODE).netns,
        program=of.cni_bin / "airmesh-cni",
        configuration=configuration,
        pods=[
            {"CNI_NETNS": netns, "CNI_ARGS": arguments.format(namespace, f"p{number}", uids[f"p{number}"])}
            for number, netns in enumerate(sandboxes(on, "ours", pods))
        ],
    )


def peer(on: Stage, pods: int, name: str, netns: str, subnet: str) -> Variant:
    """`ptp` with `host-local`, its files on the disk that airmesh's journal is on."""
    store = on.where.state / f"bench-{name}"
    configuration = on.scratch / f"{name}.json"
    ipam = {"type": "host-local", "dataDir": str(store), "subnet": subnet, "routes": [{"dst": "0.0.0.0/0"}]}
    configuration.write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "type": "ptp", "ipam": ipam}))
    return Variant(
        name=name,
        netns=netns,
        program=PTP / "ptp",
        configuration=configuration,
        pods=[{"CNI_NETNS": path} for path in sandboxes(on, name, pods)],
    )


def call(on: Stage, variant: Variant, verb: str, mode: Mode, number: int) -> None:
    """Every pod of a variant once, noted under its round."""
    lines = []
    for index, pod in enumerate(variant.pods):
        pairs = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"bench-{number}-{index}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PTP),
            **pod,
        }
        lines.append("\t".join(f"{key}={value}" for key, value in pairs.items()))
    listed, said = on.scratch / "table", on.scratch / f"{variant.name}.out"
    listed.write_text("\n".join(lines) + "\n")
    said.unlink(missing_ok=True)
    spawner = [on.program("spawner"), str(listed), *map(str, mode), str(variant.configuration), str(said)]
    printed = on.run(["nsenter", f"--net={variant.netns}", *spawner, str(variant.program)])
    try:
        result = spawned(printed)
    except Exception as wrong:
        raise SystemExit(f"{variant.name} {verb}: {wrong}\n{said.read_text()[-1500:]}") from wrong
    variant.took.setdefault((verb, mode), []).append(result.us)
    variant.walls.setdefault((verb, mode), []).append(result.wall_us)


def settle(on: Stage, variant: Variant) -> float:
    """Wait until the interfaces are gone from every pod; seconds. airmesh's DEL leaves that to a batch after it."""
    begun = time.monotonic()
    left = [Path(pod["CNI_NETNS"]).name for pod in variant.pods]
    while left:
        if time.monotonic() > begun + 20:
            raise SystemExit(f"{variant.name}: {len(left)} pods still have eth0 20 s after their DEL")
        left = [name for name in left if "eth0" in on.run(["ip", "-n", name, "-br", "link"])]
    return time.monotonic() - begun


def measure(on: Stage, rounds: int, pods: int) -> str:
    """The tables of all rounds."""
    with on.frozen(f"kubelet-{NODE}"):
        variants = [
            ours(on, pods),
            peer(on, pods, "ptp", on.node(NODE).netns, "10.89.0.0/16"),
            peer(on, pods, "alone", on.namespace("alone"), "10.90.0.0/16"),
        ]
        for number in range(rounds + 1):
            for index, mode in enumerate(MODES):
                # Rotated, so that no variant always follows the same other one.
                chosen = number % len(variants)
                for variant in variants[chosen:] + variants[:chosen]:
                    for verb in ("ADD", "DEL"):
                        call(on, variant, verb, mode, len(MODES) * number + index)
                    variant.settled.append(settle(on, variant))
            if not number:
                for variant in variants:
                    variant.took.clear()
                    variant.walls.clear()
                    variant.settled.clear()
            print(f"round {number} of {rounds}", file=sys.stderr)
        on.kubectl("delete", "pod", "-n", pod_namespace(variants[0]), "--all", "--force", "--grace-period=0")
    gone = "; ".join(f"{one.name} {percentile(one.settled, 0.5):.2f} s" for one in variants)
    tables = "\n\n".join(report(variants[0], its) for its in variants[1:])
    return f"{rounds} rounds of {pods} pods.\n\n{tables}\n\nFrom the last DEL until every interface is gone: {gone}."


def pod_namespace(variant: Variant) -> str:
    """The Kubernetes namespace of airmesh's pods."""
    return variant.pods[0]["CNI_ARGS"].split("K8S_POD_NAMESPACE=")[1].split(";")[0]


def report(mine: Variant, its: Variant) -> str:
    """One table: a line a verb, a way of calling and a percentile."""
    rows = []
    for (verb, mode), rounds in mine.took.items():
        peers = its.took[verb, mode]
        at_once = f"{mode[0]}, {mode[1]} ms apart" if mode[1] else str(mode[0])
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            found = compare(
                [percentile(one, share) / 1e3 for one in rounds], [percentile(one, share) / 1e3 for one in peers]
            )
            rows.append((verb, at_once, name, f"{found.ours:.2f}", f"{found.peer:.2f}", found.text))
        if mode[1]:
            continue
        rates = compare(
            [len(mine.pods) * 1e6 / wall for wall in mine.walls[verb, mode]],
            [len(its.pods) * 1e6 / wall for wall in its.walls[verb, mode]],
        )
        rows.append((verb, at_once, "per second", f"{rates.ours:.0f}", f"{rates.peer:.0f}", rates.text))
    where = "in the same namespace" if its.netns == mine.netns else "in a namespace of its own"
    return f"ptp + host-local {where}, milliseconds:\n\n" + table(
        ("verb", "at once", "", "airmesh", "ptp", "ratio [of rounds]"), rows
    )


def main() -> None:
    """Print the tables."""
    rounds, pods = (int(given) for given in (sys.argv[1:] + ["8", "24"][len(sys.argv) - 1 :])[:2])
    with stage() as on:
        print(measure(on, rounds, pods))


if __name__ == "__main__":
    main()
