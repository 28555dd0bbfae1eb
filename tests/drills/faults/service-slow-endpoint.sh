#!/bin/sh
# The way to one endpoint of three takes 300 ms longer.
# finds: service-slow-endpoint
# asks: service kube-system/fault
set -eu
. "${0%/*}/endpoints.inc"
case "$1" in
break)
	for host in "$NODE" "$PEER" "$CONTROL"; do
		listen "$host"
	done
	# Of the third host only what it answers on this port is late.
	nsenter --net="/run/netns/$CONTROL" sh -eu <<-END
		tc qdisc add dev fab0 root handle 1: prio
		tc qdisc add dev fab0 parent 1:3 netem delay 300ms
		tc filter add dev fab0 parent 1: protocol ip prio 1 u32 match ip sport 18081 0xffff flowid 1:3
	END
	zone=$(kubectl get node "$NODE_NAME" -o 'jsonpath={.metadata.labels.topology\.kubernetes\.io/zone}')
	serve "$zone" "$NODE_ADDRESS" "$PEER_ADDRESS" "$CONTROL_ADDRESS"
	;;
mend)
	nsenter --net="/run/netns/$CONTROL" tc qdisc del dev fab0 root
	mend_endpoints
	;;
esac
