"""``python -m services.dataplane``: one node's agent."""

from chassis.runtime.service import main
from services.dataplane.app import build
from services.dataplane.settings import Settings

raise SystemExit(main("dataplane", Settings, build))
