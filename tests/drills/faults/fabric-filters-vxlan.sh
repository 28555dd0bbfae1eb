#!/bin/sh
# The network between the nodes drops UDP port 4789.
# finds: fabric-filters-vxlan
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$ROUTER" nft 'add table inet operator; add chain inet operator drops { type filter hook forward priority 0; }; add rule inet operator drops udp dport 4789 counter drop'
	;;
mend)
	nsenter --net="/run/netns/$ROUTER" nft delete table inet operator
	;;
esac
