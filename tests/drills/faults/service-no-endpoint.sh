#!/bin/sh
# A Service selects no pod.
# finds: service-no-endpoint
# asks: service kube-system/fault
# kept: checks are not tuned by it
set -eu
case "$1" in
break)
	kubectl apply -f - <<END
apiVersion: v1
kind: Service
metadata: {name: fault, namespace: kube-system}
spec:
  selector: {k8s-app: coredns}
  ports: [{name: dns, protocol: TCP, port: 53}]
END
	;;
mend)
	kubectl -n kube-system delete service fault
	;;
esac
