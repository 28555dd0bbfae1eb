#!/bin/sh
# A pod of the node has a node port as its hostPort.
# finds: nodeport-taken-by-hostport
set -eu
case "$1" in
break)
	kubectl apply -f - <<END
apiVersion: v1
kind: Service
metadata: {name: fault, namespace: kube-system}
spec:
  type: NodePort
  externalTrafficPolicy: Cluster
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, protocol: TCP, port: 53, nodePort: 30053}]
END
	image=$(kubectl -n kube-system get pod -l k8s-app=kube-dns -o 'jsonpath={.items[0].spec.containers[0].image}')
	kubectl apply -f - <<END
apiVersion: v1
kind: Pod
metadata: {name: fault, namespace: kube-system}
spec:
  nodeName: $NODE_NAME
  terminationGracePeriodSeconds: 0
  containers: [{name: dns, image: "$image", imagePullPolicy: IfNotPresent, ports: [{containerPort: 53, hostPort: 30053, protocol: TCP}]}]
END
	;;
mend)
	kubectl -n kube-system delete service fault
	kubectl -n kube-system delete pod fault --wait=false
	;;
esac
