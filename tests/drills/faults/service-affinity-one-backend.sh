#!/bin/sh
# A Service with session affinity and two endpoints, whose forty clients stand behind one address outside.
# finds: service-affinity-one-backend
# asks: service kube-system/fault
set -eu
. "${0%/*}/endpoints.inc"
case "$1" in
break)
	listen "$PEER"
	listen "$CONTROL"
	serve "" "$PEER_ADDRESS" "$CONTROL_ADDRESS"
	kubectl -n kube-system patch service fault --type=merge \
		-p '{"spec": {"type": "NodePort", "sessionAffinity": "ClientIP"}}'
	port=$(kubectl -n kube-system get service fault -o 'jsonpath={.spec.ports[0].nodePort}')
	nsenter --net="/run/netns/$OUTSIDE" "$PYTHON" - "$NODE_ADDRESS" "$port" > /dev/null 2>&1 <<-'END' &
		import socket, sys, time
		to = sys.argv[1], int(sys.argv[2])
		held = []
		while True:
		    while len(held) < 40:
		        try:
		            held.append(socket.create_connection(to, 2))
		        except OSError:
		            time.sleep(0.2)
		    time.sleep(5)
	END
	echo $! > "$STATE/clients.pid"
	;;
mend)
	kill "$(cat "$STATE/clients.pid")"
	mend_endpoints
	;;
esac
