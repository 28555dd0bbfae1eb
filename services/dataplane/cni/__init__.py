"""The CNI border: the executable that runtimes call and the socket server that answers it."""
