"""``python -m services.ipam``."""

from __future__ import annotations

from chassis.runtime.service import main
from services.ipam.app import build
from services.ipam.settings import Settings

if __name__ == "__main__":
    raise SystemExit(main("ipam", Settings, build))
