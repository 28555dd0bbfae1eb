#!/bin/sh
# Another daemon has a route to the other node's block with a better metric.
# finds: route-shadowed
# kept: checks are not tuned by it
set -eu
case "$1" in
break)
	ip -n "$NODE" route add "$PEER_BLOCK" dev fab0 proto zebra metric 20
	;;
mend)
	ip -n "$NODE" route del "$PEER_BLOCK" dev fab0 proto zebra metric 20
	;;
esac
