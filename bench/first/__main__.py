"""Every figure of docs/performance.md again: `python -m bench.first` (some ten minutes on a quiet machine).

Each part runs by itself too, as `python -m bench.first.<part>`. Tables go to standard output as Markdown, progress to
standard error.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

PARTS = ("cni", "datapath", "service", "policy", "agents")


def main() -> None:
    """Run all parts one after the other; the exit code is that of the first that fails."""
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the begin.\n")
    for part in PARTS:
        print(f"## {part}\n", flush=True)
        code = subprocess.run([sys.executable, "-m", f"bench.first.{part}"], check=False).returncode
        if code:
            raise SystemExit(code)
        print(flush=True)
    print(f"Load {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
