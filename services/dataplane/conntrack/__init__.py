"""Connection tracking: collection of expired flows, and whose share is nearly spent."""
