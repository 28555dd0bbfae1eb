"""The datapath in the kernel: programs and maps, pods' links, nftables."""
