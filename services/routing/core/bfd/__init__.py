"""Bidirectional Forwarding Detection (RFC 5880, 5881, 5882) without sockets or clocks."""
