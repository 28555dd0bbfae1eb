"""Flow events as values: records of the ring buffer, with names."""
