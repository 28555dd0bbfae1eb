"""Egress: the masquerade table of the kernel."""
