"""A BGP speaker without sockets or clocks: messages, sessions, tables and the decision between routes (RFC 4271)."""
