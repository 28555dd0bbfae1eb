"""Services as values: frontends, the choice of endpoints, tables, shares of them."""
