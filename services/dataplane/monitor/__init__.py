"""What the node tells of itself: flow events, metrics, faults of objects."""
