"""The dataplane: a node's pods, packets, Services and drops. app.py wires it; README.md says what it owns."""
