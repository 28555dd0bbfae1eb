#!/bin/sh
# A pod asks for a Service by its full name, without the final dot, before each of many calls.
# finds: dns-search-list
# asks: service fault/web
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	break_pods <<END
apiVersion: v1
kind: Service
metadata: {name: web, namespace: fault}
spec:
  selector: {app: web}
  ports: [{port: 8080}]
END
	kubectl -n fault wait --for=condition=Ready --timeout=60s pod/web pod/client
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
