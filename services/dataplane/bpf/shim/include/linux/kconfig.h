/* bcc includes this first. It stands for the kernel's own headers, which tc and cgroup programs do not need. */
#ifndef AM_SHIM_KCONFIG_H
#define AM_SHIM_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef _Bool bool;
#define NULL ((void *)0)
#define true 1
#define false 0
#endif
