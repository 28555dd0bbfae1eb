#!/bin/sh
# The node sends to the other by a second interface, and its filter takes by the first only what goes back by it.
# finds: reverse-path-filter
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" sysctl -n net.ipv4.conf.fab0.rp_filter > "$STATE/rp_filter"
	ip -n "$NODE" link add fault0 type veth peer name fault0 netns "$ROUTER"
	ip -n "$NODE" addr add 172.29.0.1/30 dev fault0
	ip -n "$ROUTER" addr add 172.29.0.2/30 dev fault0
	ip -n "$NODE" link set fault0 up
	ip -n "$ROUTER" link set fault0 up
	ip -n "$NODE" route add "$PEER_ADDRESS/32" via 172.29.0.2 src "$NODE_ADDRESS"
	nsenter --net="/run/netns/$NODE" sysctl -qw net.ipv4.conf.fab0.rp_filter=1
	;;
mend)
	nsenter --net="/run/netns/$NODE" sysctl -qw "net.ipv4.conf.fab0.rp_filter=$(cat "$STATE/rp_filter")"
	ip -n "$NODE" link del fault0
	;;
esac
