"""Writes the C header of the eBPF programs from the records and enums that Python uses.

``services/dataplane/bpf/generated.h`` is what :func:`render_header` returns; a golden test keeps it fresh
(``python -m services.dataplane.datapath.header`` rewrites it). So a reason, a size or a layout is said once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from pathlib import Path

from proto.flow import DropReason
from proto.identity import FIRST_COMPUTED, Reserved
from proto.policy import Direction, Verdict
from services.dataplane.core.conntrack import state as idle
from services.dataplane.core.datapath import dns_layout as dns
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import nat_layout as nat
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath import tunnel_layout as tl
from services.dataplane.core.datapath.layout import MapKind
from services.dataplane.core.datapath.maps import (
    HELD,
    MAPS,
    NAT_RECENT_SETS,
    NEXT_HOP_SLOTS,
    RECORDS,
    SLOTS,
    WAYS,
    MapSpec,
)
from services.dataplane.core.datapath.wire import Record

SOURCES = Path(__file__).resolve().parent.parent / "bpf"
HEADER = SOURCES / "generated.h"

_ENUMS: tuple[tuple[str, type[IntEnum] | type[IntFlag]], ...] = (
    ("AM_REASON", DropReason),
    ("AM_IDENTITY", Reserved),
    ("AM_SIDE", Direction),
    ("AM_PEER", pl.PeerMatch),
    ("AM_VERDICT", Verdict),
    ("AM_IPCACHE", at.PeerFlag),
    ("AM_FLOW", at.FlowFlag),
    ("AM_SEEN", at.Seen),
    ("AM_UPLINK", at.UplinkFlag),
    ("AM_LOCALITY", at.Locality),
    ("AM_CONFIG", at.ConfigFlag),
    ("AM_AFFINITY", lb.AffinityKind),
    ("AM_SCOPE", lb.Scope),
    ("AM_SERVICE", lb.ServiceFlag),
    ("AM_HOOK", nat.Hook),
    ("AM_TUNNEL", tl.TunnelKind),
    ("AM_DNS", dns.DnsOutcome),
)


def struct_name(record: type[Record]) -> str:
    """The C name of a record: ``FlowKey`` is ``am_flow_key``."""
    return "am_" + re.sub(r"(?<!^)(?=[A-Z])", "_", record.__name__).lower()


def render_header() -> str:
    """The whole header."""
    parts = [
        "/* Written by services.dataplane.datapath.header from core/datapath/layout.py and proto/: do not edit. */",
        "#ifndef AM_GENERATED_H\n#define AM_GENERATED_H",
        "\n\n".join(_enum(prefix, members) for prefix, members in _ENUMS),
        "\n".join(_constants()),
        "/* An address: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. */\nstruct am_addr {\n\tu32 word[4];\n};",
        "\n\n".join(_struct(record) for record in RECORDS),
        "\n".join(_table(spec) for spec in MAPS),
        "#endif",
    ]
    return "\n\n".join(parts) + "\n"


def _enum(prefix: str, members: Iterable[IntEnum | IntFlag]) -> str:
    return "\n".join(f"#define {prefix}_{member.name} {member.value}" for member in members)


def _constants() -> list[str]:
    numbers = {
        "AM_NO_RULE": f"{at.NO_RULE:#x}u",
        "AM_REPLY_MARK": f"{at.REPLY_MARK:#x}u",
        "AM_SENT_MARK": f"{at.SENT_MARK:#x}u",
        "AM_FIRST_COMPUTED": FIRST_COMPUTED,
        "AM_SCOPE_BITS": pl.SCOPE_BITS,
        "AM_ADDRESS_BITS": 128,
        "AM_CIDR_BITS": pl.CIDR_BITS,
        "AM_WORK_FIB": at.WORK_FIB,
        "AM_MAX_EXPIRED": at.MAX_EXPIRED,
        "AM_FRAGMENTS_EACH": at.FRAGMENTS_EACH,
        "AM_FRAGMENT_SENDERS": at.FRAGMENT_SENDERS,
        "AM_FIRST_PORT": nat.FIRST_PORT,
        "AM_SLOTS": SLOTS,
        "AM_LAST_PORT": nat.LAST_PORT,
        "AM_PORT_TRIES": nat.PORT_TRIES,
        "AM_TUNNEL_MARK": f"{tl.TUNNEL_MARK:#x}u",
        "AM_FIRST_TUNNEL_PORT": tl.FIRST_TUNNEL_PORT,
        "AM_LAST_TUNNEL_PORT": tl.LAST_TUNNEL_PORT,
        "AM_TUNNEL_TTL": tl.TUNNEL_TTL,
        "AM_WAYS": WAYS,
        "AM_NAT_RECENT_SETS": NAT_RECENT_SETS,
        "AM_NEXT_HOP_SLOTS": NEXT_HOP_SLOTS,
        "AM_HELD": HELD,
        "AM_NODE_ENDPOINT": at.NODE,
        "AM_DNS_SETS": dns.DNS_SETS,
        "AM_DNS_WAYS": dns.DNS_WAYS,
        "AM_DNS_SAMPLES": dns.DNS_SAMPLES,
        "AM_DNS_NAME_WORDS": dns.DNS_NAME_WORDS,
        "AM_DNS_OUTCOMES": dns.DNS_OUTCOMES,
        "AM_DNS_BUCKETS": dns.DNS_BUCKETS,
        "AM_DNS_TICK_SHIFT": dns.DNS_TICK_SHIFT,
        "AM_DNS_TIMEOUT": f"{dns.DNS_TIMEOUT}ull",
        "AM_DNS_RETRY_FROM": f"{dns.DNS_RETRY_FROM}ull",
        "AM_DNS_RETRY_UNTIL": f"{dns.DNS_RETRY_UNTIL}ull",
        "AM_PRESSURE": idle.PRESSURE,
        "AM_PEER_SHARE": idle.PEER_SHARE,
        "AM_DNS_PORT": idle.DNS_PORT,
        "AM_AHEAD": idle.AHEAD,
        "AM_BEHIND": idle.BEHIND,
        "AM_STEP": idle.STEP,
        "AM_EARLY": idle.EARLY,
        "AM_TCP_SYN_SECONDS": idle.TCP_SYN,
        "AM_TCP_ESTABLISHED_SECONDS": idle.TCP_ESTABLISHED,
        "AM_TCP_HALF_CLOSED_SECONDS": idle.TCP_HALF_CLOSED,
        "AM_TCP_CLOSING_SECONDS": idle.TCP_CLOSING,
        "AM_UDP_ONCE_SECONDS": idle.UDP_ONCE,
        "AM_OTHER_ONCE_SECONDS": idle.OTHER_ONCE,
        "AM_STREAM_SECONDS": idle.STREAM,
        "AM_ANSWERED_DNS_SECONDS": idle.ANSWERED_DNS,
        "AM_ICMP_SECONDS": idle.ICMP_ANY,
    }
    return [f"#define {name} {value}" for name, value in numbers.items()]


def _struct(record: type[Record]) -> str:
    summary = (record.__doc__ or "").strip().splitlines()[0].replace("`", "")
    wire = record.wire()
    lines = [f"/* {summary} */", f"struct {struct_name(record)} {{"]
    for member in wire.members:
        array = f"[{member.length}]" if member.length else ""
        lines.append(f"\t{member.c_type} {member.name}{array};")
    lines += ["};", f'_Static_assert(sizeof(struct {struct_name(record)}) == {wire.size}, "{record.__name__}");']
    return "\n".join(lines)


_TABLE_TYPES = {
    MapKind.HASH: "hash",
    MapKind.ARRAY: "array",
    MapKind.PERCPU_ARRAY: "percpu_array",
    MapKind.LRU_HASH: "lru_hash",
    MapKind.LRU_PERCPU_HASH: "lru_percpu_hash",
    MapKind.LPM_TRIE: "lpm_trie",
}
"""How bcc's ``BPF_F_TABLE`` spells the map types."""


def _table(spec: MapSpec) -> str:
    if spec.key is None or spec.value is None:
        return f"/* {spec.purpose} */\nBPF_RINGBUF_OUTPUT({spec.name}, {spec.entries // 4096});"
    # An array's key is a plain int to bcc; our Index record has the same four bytes.
    key = "u32" if spec.key is at.Index else f"struct {struct_name(spec.key)}"
    value = f"struct {struct_name(spec.value)}"
    table = f'"{_TABLE_TYPES[spec.kind]}", {key}, {value}, {spec.name}, {spec.entries}, {spec.flags}'
    return f"/* {spec.purpose} */\nBPF_F_TABLE({table});"


if __name__ == "__main__":
    HEADER.write_text(render_header())
