"""``python -m services.routing``."""

from __future__ import annotations

from chassis.runtime.service import main
from services.routing.app import build
from services.routing.settings import Settings

if __name__ == "__main__":
    raise SystemExit(main("routing", Settings, build))
