#!/bin/sh
# A rule names a port by the wrong protocol.
# finds: policy-port-name
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
  ingress: [{ports: [{port: http, protocol: UDP}]}]
END
	;;
mend)
	mend_pods
	;;
esac
