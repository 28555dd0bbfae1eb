"""The decisions of ``policy``: policies, pods and namespaces in; identities, compiled rules and verdicts out.

Nothing here reads a clock, a socket or a random number, so every copy of the service computes the same from the same.
"""
