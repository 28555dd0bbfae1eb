"""The `dns` service: decides what CoreDNS should be, and reports what was seen of it."""
