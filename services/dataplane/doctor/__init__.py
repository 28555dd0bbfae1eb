"""Reads what the checks of ``core.doctor`` judge, and adds them to the runtime."""
