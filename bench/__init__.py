"""Benchmarks: what airmesh costs beside its peers. Nothing here is timed by the tests."""
