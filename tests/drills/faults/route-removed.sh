#!/bin/sh
# A script of the operator's removes the route each second.
# finds: route-removed
set -eu
case "$1" in
break)
	(while :; do ip -n "$NODE" route del "$PEER_BLOCK" proto 186 metric 64 2> /dev/null || :; sleep 1; done) > /dev/null 2>&1 &
	echo $! > "$STATE/route-removed.pid"
	;;
mend)
	kill "$(cat "$STATE/route-removed.pid")"
	;;
esac
