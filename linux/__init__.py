"""The Linux kernel's own interfaces, once, for every service: netlink, network namespaces and bpf(2).

Knows nothing of airmesh: no module here knows what a pod is. Services that touch the kernel and the lab import from
here; this package imports nothing of ours.
"""
