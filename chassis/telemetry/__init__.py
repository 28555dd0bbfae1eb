"""Telemetry of a service: health, logs, traces, metrics."""
