#!/bin/busybox sh
# /init of the VM: loads modules, mounts the host's files read-only over 9p, runs /command in them, powers off.
B=/bin/busybox
$B mkdir -p /proc /sys /dev /host
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
while read -r module; do
  $B insmod "/modules/$module" || echo "init: $module cannot be loaded"
done < /modules/order
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /host || echo "init: no files of the host"
$B mount -t tmpfs tmpfs /host/run
$B mount -t proc proc /host/proc
$B mount -t sysfs sys /host/sys
$B mount -t bpf bpf /host/sys/fs/bpf
$B mount --rbind /dev /host/dev
$B mkdir -p /host/run/tmp
$B cp /command /host/run/command
$B chroot /host /bin/sh /run/command
echo "init: the command ended with $?"
$B poweroff -f
