"""Runs the service: ``python -m services.dns``."""

from chassis.runtime.service import main
from services.dns.app import build
from services.dns.settings import Settings

if __name__ == "__main__":
    raise SystemExit(main("dns", Settings, build))
