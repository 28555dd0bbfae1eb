#!/bin/sh
# Clients ask a node without an endpoint of a Service with externalTrafficPolicy Local.
# finds: nodeport-no-local-endpoint
# kept: checks are not tuned by it
set -eu
case "$1" in
break)
	kubectl apply -f - <<END
apiVersion: v1
kind: Service
metadata: {name: fault, namespace: kube-system}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {k8s-app: kube-dns, pod-on: $PEER_NAME}
  ports: [{name: dns, protocol: TCP, port: 53, nodePort: 30053}]
END
	kubectl -n kube-system label pod -l k8s-app=kube-dns --field-selector "spec.nodeName=$PEER_NAME" "pod-on=$PEER_NAME" --overwrite
	(while :; do nsenter --net="/run/netns/$OUTSIDE" "$PYTHON" -c "import socket; s = socket.socket(); s.settimeout(0.2); s.connect_ex(('$NODE_ADDRESS', 30053))"; done) > /dev/null 2>&1 &
	echo $! > "$STATE/client.pid"
	;;
mend)
	kill "$(cat "$STATE/client.pid")"
	kubectl -n kube-system delete service fault
	kubectl -n kube-system label pod -l k8s-app=kube-dns pod-on-
	;;
esac
