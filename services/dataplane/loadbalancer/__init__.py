"""Services in the kernel's maps, health checks, sockets whose backend left."""
