#!/bin/sh
# The host's own firewall drops VXLAN where it leaves the node.
# finds: firewall-drops
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" nft 'add table netdev operator; add chain netdev operator drops { type filter hook egress device fab0 priority 0; }; add rule netdev operator drops udp dport 4789 counter drop'
	;;
mend)
	nsenter --net="/run/netns/$NODE" nft delete table netdev operator
	;;
esac
