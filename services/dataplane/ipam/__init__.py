"""Addresses of this node's pods: the journal on disk, blocks and claims asked of ``ipam``."""
