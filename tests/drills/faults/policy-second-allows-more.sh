#!/bin/sh
# A second policy allows more peers to the same pods.
# finds: policy-second-allow
# asks: policy fault/web
# kept: checks are not tuned by it
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
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: same-namespace, namespace: fault}
spec:
  podSelector: {}
  ingress: [{from: [{namespaceSelector: {}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
