"""The runtime of a service: start and end, settings, loops, leases."""
