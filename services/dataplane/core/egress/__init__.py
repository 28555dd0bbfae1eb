"""Egress: the masquerade table as text."""
