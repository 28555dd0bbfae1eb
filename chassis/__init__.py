"""What every service stands on: settings, bus, typed KV and mirrors of it, loops, leases, health, telemetry.

Knows no domain: no module here knows what a pod or a route is. Services import from here; this package imports
``proto`` and ``kit``.
"""
