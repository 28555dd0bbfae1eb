"""Tunnels: the devices that ``routing`` made, seen in the kernel; their maps and programs."""
