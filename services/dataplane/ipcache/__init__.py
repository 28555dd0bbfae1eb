"""The ipcache: address → identity, and the ownership check of what nodes publish."""
