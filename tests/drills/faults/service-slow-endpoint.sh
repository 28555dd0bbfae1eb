#!/bin/sh
# The way from one endpoint of three is full: what it answers waits behind what somebody fetches from it.
# finds: service-slow-endpoint
# asks: service kube-system/fault
set -eu
. "${0%/*}/endpoints.inc"
case "$1" in
break)
	for host in "$NODE" "$PEER" "$CONTROL"; do
		listen "$host"
	done
	narrow "$CONTROL" "$PEER" "$CONTROL_ADDRESS"
	serve "" "$NODE_ADDRESS" "$PEER_ADDRESS" "$CONTROL_ADDRESS"
	;;
mend)
	widen "$CONTROL"
	mend_endpoints
	;;
esac
