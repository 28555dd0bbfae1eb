#!/bin/sh
# A pod asks for a Service by its full name, without the final dot, before each of many calls.
# finds: dns-search-list
# asks: service fault/web
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	# An endpoint in each zone: that all are in another one would be a finding, too.
	break_pods <<END
$(for node in "$NODE_NAME" "$PEER_NAME"; do cat <<POD
apiVersion: v1
kind: Pod
metadata: {name: web-$node, namespace: fault, labels: {app: web}}
spec:
  nodeName: $node
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: "lab.local/shop:1", args: [--http, "8080"]}]
---
POD
done)
apiVersion: v1
kind: Service
metadata: {name: web, namespace: fault}
spec:
  selector: {app: web}
  ports: [{port: 8080}]
END
	kubectl -n fault wait --for=condition=Ready --timeout=60s --all pod
	call=tcp://web.fault.svc.cluster.local:8080
	while kubectl -n fault exec client -- shop probe --parallel 2 $call $call $call $call; do sleep 2; done > /dev/null 2>&1 &
	echo $! > "$STATE/calls.pid"
	;;
mend)
	kill "$(cat "$STATE/calls.pid")"
	rm "$STATE/calls.pid"
	mend_pods
	;;
esac
