"""The task that sweeps conntrack for as long as the service runs."""

from __future__ import annotations

from chassis.runtime.service import Runtime
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.conntrack.flow_shares import FlowShares
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.datapath.tables import Tables
from services.dataplane.settings import Settings


def start(runtime: Runtime[Settings], tables: Tables, collector: FlowCollector, endpoints: LocalEndpoints) -> None:
    """Sweeps from now on, and tells of shares that are nearly spent."""
    runtime.spawn("conntrack", FlowShares(runtime, tables, collector, endpoints).keep())
