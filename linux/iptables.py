"""The rules of iptables-legacy in the calling thread's network namespace, as its save program prints them.

Blocking; runs Debian's `iptables-legacy-save` and `ip6tables-legacy-save`, which an image need not have, and only where
the kernel has tables of theirs: the program itself would make them.
Source: net/netfilter/x_tables.c, ``/proc/net/ip_tables_names``.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from linux.nftables import SECONDS, NoRuleset

_OF_VERSION = {4: ("ip_tables_names", "iptables-legacy-save"), 6: ("ip6_tables_names", "ip6tables-legacy-save")}


def saved(version: int) -> str:
    """Tables of one family with their counters (iptables-save(8)); empty where there are none. Raises NoRuleset."""
    names, name = _OF_VERSION[version]
    tables = ""
    with suppress(OSError):
        tables = " ".join(Path(f"/proc/thread-self/net/{names}").read_text().split())
    if not tables:
        return ""
    program = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise NoRuleset(f"{name} is not installed here, and the kernel has its tables: {tables}")
    try:
        done = subprocess.run([program, "--counters"], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoRuleset(f"{name} does not answer: {error}") from error
    if done.returncode:
        raise NoRuleset(f"{name} says: {done.stderr.strip()[:200]}")
    return done.stdout
