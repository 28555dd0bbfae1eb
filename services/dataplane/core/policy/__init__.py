"""Policy as entries of maps: scopes, selector sets, CIDR partitions, the steps of a change."""
