#!/bin/sh
# The network between the nodes drops IP protocol 4, by which pools send IPv4.
# finds: fabric-filters-ipip
set -eu
. "${0%/*}/model.inc"
case "$1" in
break)
	take ipip am-ipip
	nsenter --net="/run/netns/$ROUTER" nft 'add table inet operator; add chain inet operator drops { type filter hook forward priority 0; }; add rule inet operator drops meta l4proto 4 counter drop'
	;;
mend)
	nsenter --net="/run/netns/$ROUTER" nft delete table inet operator || true
	take vxlan am-vxlan
	;;
esac
