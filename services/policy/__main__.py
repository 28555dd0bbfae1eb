"""``python -m services.policy``: run one copy of the service (settings come from ``AIRMESH_…`` variables)."""

from __future__ import annotations

from chassis.runtime.service import main
from services.policy.app import build
from services.policy.settings import Settings

if __name__ == "__main__":
    raise SystemExit(main("policy", Settings, build))
