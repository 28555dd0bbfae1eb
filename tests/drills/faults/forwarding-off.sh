#!/bin/sh
# Somebody has switched forwarding off on the uplink.
# finds: forwarding-off
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" sysctl -qw net.ipv4.conf.fab0.forwarding=0
	;;
mend)
	nsenter --net="/run/netns/$NODE" sysctl -qw net.ipv4.conf.fab0.forwarding=1
	;;
esac
