"""The bus: one connection to NATS, typed keys and values, mirrors of buckets, requests, accounts."""
