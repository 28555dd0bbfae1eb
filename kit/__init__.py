"""Pure tools for the cores: no IO, no clock, no randomness."""
