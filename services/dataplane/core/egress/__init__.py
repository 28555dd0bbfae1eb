"""What leaves the cluster: the masquerade table as text."""
