"""Addresses of this node's pods as values: what a pod is to have, the journal's records and state."""
