"""The `cluster` service: the mirror of the Kubernetes API and the only one that writes to it."""
