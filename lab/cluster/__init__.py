"""A Kubernetes and airmesh in network namespaces: up, down, what is left, and how to reach it."""
