"""BGP sessions (RFC 4271 8): states, timers, negotiation and restarts of one peer, without a socket or a clock."""
