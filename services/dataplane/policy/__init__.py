"""Policy in the kernel's maps: identities, rules, CIDR partitions, and what finds no room."""
