"""The ipcache as entries: whose an address is, of all that say so."""
