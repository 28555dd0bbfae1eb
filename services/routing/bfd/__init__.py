"""BFD of this node: a process of its own that sends and watches packets, and the agent's side of it."""
