"""Tunnels: devices, the other ends, who may send what through them, and what must be encrypted."""
