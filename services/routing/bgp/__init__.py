"""The BGP speaker's sockets: connections of peers, a listener, KEEPALIVEs on time. ``core/bgp`` decides."""
