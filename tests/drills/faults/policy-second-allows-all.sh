#!/bin/sh
# A second policy allows everything to the same pods.
# finds: policy-second-allow
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	break_pods <<END
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: fault}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, namespace: fault}
spec:
  podSelector: {}
  ingress: [{}]
END
	;;
mend)
	mend_pods
	;;
esac
