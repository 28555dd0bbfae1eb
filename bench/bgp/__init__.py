"""BGP speakers side by side: how soon a table that one peer sends has reached another one, and what it costs."""
