"""Checks of policy that explain why one does not bite: objects and compiled rules in, findings out."""
