"""Checks of what this node's datapath serves: what objects ask for and what the host has, compared into findings."""
