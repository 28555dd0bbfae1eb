#!/bin/sh
# A rule of iptables-legacy, which no list of nftables rules shows, drops VXLAN where it leaves the node.
# finds: firewall-drops
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" iptables-legacy -A OUTPUT -p udp --dport 4789 -j DROP
	;;
mend)
	nsenter --net="/run/netns/$NODE" iptables-legacy -D OUTPUT -p udp --dport 4789 -j DROP
	;;
esac
