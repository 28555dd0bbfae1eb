"""Connection tracking as values: states of flows, time-outs, counts."""
