#!/bin/sh
# The network lets nothing through between the two nodes' addresses.
# finds: node-unreachable
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$ROUTER" nft "add table inet operator; add chain inet operator drops { type filter hook forward priority 0; }; add rule inet operator drops ip saddr { $NODE_ADDRESS, $PEER_ADDRESS } ip daddr { $NODE_ADDRESS, $PEER_ADDRESS } counter drop"
	;;
mend)
	nsenter --net="/run/netns/$ROUTER" nft delete table inet operator
	;;
esac
