"""A floor under each model: two nodes whose programs decide nothing, so what is left is redirections and headers.

The wiring of `bench.first.ground.kernel`, with the programs of `floor.c` on the pod's link and on the uplink. The
headers that a packet gets are constants of the pair of nodes.
"""

from __future__ import annotations

import json
import os
import struct
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from bench.first import ground
from bench.first.ground import Ends
from bench.first.stage import Stage
from kit.models import HOST_GW, IPIP, VXLAN
from lab.cluster import namespaces
from linux import bpf, netns
from linux.bpf import AttachKind, ProgramKind
from services.dataplane.datapath.compile import compile_source

SOURCE = Path(__file__).with_name("floor.c")
OVERHEAD = {model.name: model.overhead[4] for model in (HOST_GW, VXLAN, IPIP)}
MTU = 1500
VXLAN_PORT, SOURCE_PORT = 4789, 40000


def floor(on: Stage, first: int, model: str) -> Ends:
    """Nodes `k<first>` (the client's) and the one after it, by programs that decide nothing."""
    ends = ground.kernel(on, first)
    numbers = (first, first + 1)
    for number, other in zip(numbers, reversed(numbers), strict=True):
        node = str(namespaces.NETNS / f"am-bench-k{number}")
        links, there = _links(on, number), _links(on, other)
        macs = bytes.fromhex((there["fab0"][1] + links["fab0"][1]).replace(":", ""))
        head, macros = outer(model, number, other)
        values = {"UPLINK": links["fab0"][0], "POD": links["pod0"][0], **macros}
        values["HEAD"] = ",".join(map(str, macs + bytes.fromhex("0800") + head))
        _attach(on, node, values, {"leave": links["pod0"][0], "arrive": links["fab0"][0]})
        on.ip(node, f"link set pod0 mtu {MTU - OVERHEAD[model]}")
        on.ip(f"{node}p", f"link set eth0 mtu {MTU - OVERHEAD[model]}")
    return ends


def outer(model: str, number: int, other: int) -> tuple[bytes, dict[str, object]]:
    """What stands between a frame's Ethernet header and the packet, lengths and checksum 0, and the macros that say how
    to complete it. Sources: RFC 791, RFC 7348, RFC 2003.
    """
    if model == HOST_GW.name:
        return b"", {}
    vxlan = model == VXLAN.name
    ends = (IPv4Address(f"172.30.0.{100 + one}").packed for one in (number, other))
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0x4000, 64, 17 if vxlan else 4, 0, *ends)
    # As the program reads it: words in the machine's own order.
    macros: dict[str, object] = {"SUM": f"{sum(struct.unpack('=10H', header))}u"}
    if not vxlan:
        return header, macros
    inner = bytes(12) + bytes.fromhex("0800")
    return header + struct.pack(">HHHHII", SOURCE_PORT, VXLAN_PORT, 0, 0, 0x08000000, 1 << 8) + inner, {
        **macros,
        "IS_VXLAN": 1,
    }


def _links(on: Stage, number: int) -> dict[str, tuple[int, str]]:
    """Index and MAC address of the links of a node."""
    said = json.loads(on.run(["ip", "-n", f"am-bench-k{number}", "--json", "link"]))
    return {one["ifname"]: (one["ifindex"], one["address"]) for one in said}


def _attach(on: Stage, node: str, macros: dict[str, object], hooks: dict[str, int]) -> None:
    """Program → interface that it sees what comes in by; the links go with the stage."""
    definitions = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    programs = compile_source(definitions + SOURCE.read_text()).programs
    opened = netns.open_netns(node)
    try:
        with netns.inside(opened):
            for name, ifindex in hooks.items():
                program = bpf.program_load(ProgramKind.SCHED_CLS, programs[name].code, name=f"floor_{name}")
                link = bpf.link_create(program, ifindex, AttachKind.TCX_INGRESS)
                os.close(program)
                on.finally_(partial(os.close, link))
    finally:
        os.close(opened)
