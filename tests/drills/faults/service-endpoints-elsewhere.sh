#!/bin/sh
# All endpoints of a Service are in the zone of the second node.
# finds: service-endpoints-elsewhere
# asks: service kube-system/fault
set -eu
. "${0%/*}/endpoints.inc"
case "$1" in
break)
	zone=$(kubectl get node "$PEER_NAME" -o 'jsonpath={.metadata.labels.topology\.kubernetes\.io/zone}')
	listen "$PEER"
	serve "$zone" "$PEER_ADDRESS"
	;;
mend)
	mend_endpoints
	;;
esac
