"""What leaves the cluster: the masquerade table of the kernel."""
