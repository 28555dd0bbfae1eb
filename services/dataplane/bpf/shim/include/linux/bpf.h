/* Empty: bcc brings its own (compat/linux/bpf.h). */
