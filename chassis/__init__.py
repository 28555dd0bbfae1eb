"""What every service stands on: settings, the bus, typed KV and mirrors of it, reconcile loops, leases, health, telemetry.

Knows no domain: no module here knows what a pod or a route is. Services import from here; this package imports
``proto`` and ``kit``.
"""
