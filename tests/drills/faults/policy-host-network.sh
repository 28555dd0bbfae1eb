#!/bin/sh
# A policy selects a host-network pod alone.
# finds: policy-host-network
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	break_pods <<END
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: fault, labels: {app: agent}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "lab.local/shop:1", args: [--http, "18080"]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: agent, namespace: fault}
spec:
  podSelector: {matchLabels: {app: agent}}
  ingress: [{from: [{podSelector: {}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
