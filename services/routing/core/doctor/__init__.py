"""Checks of what keeps two nodes apart: what is wanted and what the kernel has, compared into findings."""
