"""Counters of ``/proc/net/netstat``: for each group a line of names and one of numbers (net/ipv4/proc.c)."""

from __future__ import annotations


def counter(netstat: str, group: str, name: str) -> int:
    """The number under ``name`` of a group, e.g. ``TcpExt``; 0 where there is none."""
    lines = [line.split() for line in netstat.splitlines()]
    named = [line for line in lines if line and line[0] == f"{group}:"]
    if len(named) != 2 or name not in named[0][: len(named[1])]:
        return 0
    return int(named[1][named[0].index(name)])
