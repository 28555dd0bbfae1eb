#!/bin/sh
# Another machine on the node's network has its address.
# finds: address-duplicate
# kept: checks are not tuned by it
set -eu
case "$1" in
break)
	ip -n "$CONTROL" addr add "$NODE_ADDRESS/32" dev fab0
	;;
mend)
	ip -n "$CONTROL" addr del "$NODE_ADDRESS/32" dev fab0
	ip -n "$NODE" neigh flush dev fab0
	;;
esac
