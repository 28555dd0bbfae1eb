"""Runs a service that serves every model of routing that there is: ``python -m tests.drills.serving services.routing``.

Also those that a release does not serve: what is tried by a drill is tried before it is served to anybody.
"""

from __future__ import annotations

import runpy
import sys
from typing import cast

from kit import models


def main() -> None:
    """Run the service that the first argument names."""
    served = cast("dict[str, models.Model]", models.SERVED)
    served.update({model.name: model for model in vars(models).values() if isinstance(model, models.Model)})
    module = sys.argv[1]
    sys.argv = sys.argv[:1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
