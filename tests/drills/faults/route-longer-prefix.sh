#!/bin/sh
# Another daemon has a longer prefix than the other node's block, which leads nowhere.
# finds: route-shadowed
set -eu
case "$1" in
break)
	ip -n "$NODE" route add "$PEER_PART" dev fab0 proto bird
	;;
mend)
	ip -n "$NODE" route del "$PEER_PART" dev fab0 proto bird
	;;
esac
