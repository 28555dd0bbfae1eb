"""The ipcache as entries: address → identity."""
