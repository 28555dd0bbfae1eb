"""The services of the mesh: one folder each, none imports another."""
