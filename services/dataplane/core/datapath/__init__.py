"""The maps of the datapath as values: layouts, sizes, who gives when one is full, upgrades."""
