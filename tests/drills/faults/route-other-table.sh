#!/bin/sh
# A rule of policy routing sends packets for the other node to a table of its own.
# finds: route-other-table
set -eu
case "$1" in
break)
	ip -n "$NODE" route add "$PEER_BLOCK" dev fab0 table 77
	ip -n "$NODE" rule add to "$PEER_BLOCK" lookup 77 pref 100
	;;
mend)
	ip -n "$NODE" rule del pref 100
	ip -n "$NODE" route flush table 77
	;;
esac
