"""Monitoring of the node: flow events, metrics, faults of objects."""
