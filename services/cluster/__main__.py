"""Runs the service: ``python -m services.cluster``."""

from chassis.runtime.service import main
from services.cluster.app import build
from services.cluster.settings import Settings

if __name__ == "__main__":
    raise SystemExit(main("cluster", Settings, build))
