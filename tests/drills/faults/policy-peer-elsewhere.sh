#!/bin/sh
# A peer without a namespace selector names pods of another namespace.
# finds: policy-peer-elsewhere
# asks: policy fault/web
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
  ingress: [{from: [{podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
