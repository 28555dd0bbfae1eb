"""Lookups of a pod: how long they take and how many queries they are, by CoreDNS' settings."""
