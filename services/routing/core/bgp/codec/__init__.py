"""BGP messages as bytes: framing, OPEN, NOTIFICATION, ROUTE-REFRESH and UPDATE, read and written without any state."""
