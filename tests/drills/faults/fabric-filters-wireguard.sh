#!/bin/sh
# The network between the nodes drops UDP port 51820, by which packets between pods are encrypted.
# finds: fabric-filters-wireguard
set -eu
. "${0%/*}/model.inc"
case "$1" in
break)
	take wireguard am-wg
	nsenter --net="/run/netns/$ROUTER" nft 'add table inet operator; add chain inet operator drops { type filter hook forward priority 0; }; add rule inet operator drops udp dport 51820 counter drop'
	;;
mend)
	nsenter --net="/run/netns/$ROUTER" nft delete table inet operator || true
	take vxlan am-vxlan
	;;
esac
