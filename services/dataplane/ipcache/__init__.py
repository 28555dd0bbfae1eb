"""The ipcache: whose an address is, and whose word counts for it."""
