#!/bin/sh
# A process of the host listens on a node port.
# finds: nodeport-taken-by-process
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" "$PYTHON" -m http.server 30053 > /dev/null 2>&1 &
	echo $! > "$STATE/listener.pid"
	kubectl apply -f - <<END
apiVersion: v1
kind: Service
metadata: {name: fault, namespace: kube-system}
spec:
  type: NodePort
  externalTrafficPolicy: Cluster
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, protocol: TCP, port: 53, nodePort: 30053}]
END
	;;
mend)
	kill "$(cat "$STATE/listener.pid")"
	kubectl -n kube-system delete service fault
	;;
esac
