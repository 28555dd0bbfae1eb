"""CPU time of a call, for ratios and generous bounds: the least of a few, the collector off.

What a worker of the suite holds is collected sometimes, for more than a second where much has been tested before.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def least(calls: int, call: Callable[[], object]) -> float:
    """Seconds of the processor that the quickest of so many calls took."""
    took = []
    gc.disable()
    try:
        for _ in range(calls):
            began = time.process_time()
            call()
            took.append(time.process_time() - began)
    finally:
        gc.enable()
    return min(took)
