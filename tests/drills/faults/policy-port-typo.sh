#!/bin/sh
# A rule names a port by a name with two letters changed.
# finds: policy-port-name
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
  ingress: [{ports: [{port: htpp}]}]
END
	;;
mend)
	mend_pods
	;;
esac
