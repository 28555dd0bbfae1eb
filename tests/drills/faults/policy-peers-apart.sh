#!/bin/sh
# Namespace and pod selector are two peers that were meant as one.
# finds: policy-peers-apart
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
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
    - podSelector: {matchLabels: {k8s-app: kube-dns}}
END
	;;
mend)
	mend_pods
	;;
esac
