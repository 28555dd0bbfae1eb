"""Pure decisions about pools, blocks, claims and recovery: no clock, no bus, no randomness of their own."""
