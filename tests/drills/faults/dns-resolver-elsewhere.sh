#!/bin/sh
# A pod has its node's resolver (dnsPolicy: Default), which knows no name of the cluster, and asks for one.
# finds: dns-resolver-elsewhere
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	# What the node's resolv.conf names, an outside host, answers NXDOMAIN to everything.
	nsenter --net="/run/netns/$OUTSIDE" "$PYTHON" -c '
import socket
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("172.30.0.1", 53))
while True:
    asked, whom = heard.recvfrom(512)
    heard.sendto(asked[:2] + b"\x81\x83" + asked[4:6] + bytes(6) + asked[12:], whom)
' > /dev/null 2>&1 &
	echo $! > "$STATE/outside.pid"
	break_pods <<END
apiVersion: v1
kind: Pod
metadata: {name: stray, namespace: fault}
spec:
  dnsPolicy: Default
  terminationGracePeriodSeconds: 0
  containers: [{name: stray, image: "lab.local/shop:1", args: [--http, "8080"]}]
END
	kubectl -n fault wait --for=condition=Ready --timeout=60s pod/stray
	call=tcp://web.fault.svc.cluster.local:8080
	while kubectl -n fault exec stray -- shop probe $call || kubectl -n fault get pod stray; do sleep 2; done > /dev/null 2>&1 &
	echo $! > "$STATE/calls.pid"
	;;
mend)
	kill "$(cat "$STATE/calls.pid")" "$(cat "$STATE/outside.pid")"
	rm "$STATE/calls.pid" "$STATE/outside.pid"
	mend_pods
	;;
esac
