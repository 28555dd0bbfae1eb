"""The models of routing side by side: ours, the kernel's own routing, and the kernel's VXLAN as Flannel lays it."""
