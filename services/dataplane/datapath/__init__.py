"""The eBPF programs and maps in the kernel: compiled, loaded, pinned, attached, grown, upgraded."""
