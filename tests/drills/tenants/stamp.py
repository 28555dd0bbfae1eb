"""Lines of standard input, each behind the moment when it came: seconds since 1970 by the wall clock.

A process of its own: in the drill's, threads that attack and measure hold the interpreter for seconds.
"""

from __future__ import annotations

import sys
import time

for line in sys.stdin:
    sys.stdout.write(f"{time.time():.6f} {line}")
    sys.stdout.flush()
