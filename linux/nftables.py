"""The ruleset of the calling thread's network namespace, as `nft --json list ruleset` prints it.

Rules of iptables-nft are in it. Blocking; runs Debian's `nft`, which an image need not have.
"""

from __future__ import annotations

import shutil
import subprocess

SECONDS = 4.0


class NoRuleset(Exception):
    """The ruleset cannot be read; says why."""


def ruleset() -> str:
    """JSON of libnftables-json(5). Raises NoRuleset."""
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise NoRuleset("nft is not installed here: the host's firewall cannot be read")
    try:
        done = subprocess.run(
            [program, "--json", "list", "ruleset"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoRuleset(f"nft does not answer: {error}") from error
    if done.returncode:
        raise NoRuleset(f"nft says: {done.stderr.strip()[:200]}")
    return done.stdout
