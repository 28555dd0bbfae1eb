"""The only doors to the kernel: bpf(2), rtnetlink, nftables."""
