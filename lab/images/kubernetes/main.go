// Command k8s is every Kubernetes component that a lab node or its control plane runs, in one binary:
//
//	k8s etcd --data-dir …
//	k8s kube-apiserver --etcd-servers …
//	k8s kubelet --config …
//
// Each word names the stock component, with its stock flags; nothing of Kubernetes is changed here. One
// binary links the shared packages once (135 MB instead of six times 90 MB) and takes one build.
//
// go.mod replaces the staging modules, which k8s.io/kubernetes requires as v0.0.0, by their published
// twins. go.mod and go.sum are committed; do not run `go mod tidy` while building a lab.
package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components maps the first argument to the cobra command of the stock component.
// kube-proxy is here for comparisons only: a lab runs none.
var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kube-proxy":              proxy.NewProxyCommand,
}

func usage() string {
	names := []string{"etcd"}
	for name := range components {
		names = append(names, name)
	}
	sort.Strings(names)
	return "usage: k8s " + strings.Join(names, "|") + " [flags of that component]"
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage())
		os.Exit(2)
	}
	// A component reads os.Args as if it had been started by its own name.
	os.Args = os.Args[1:]
	name := os.Args[0]
	if name == "etcd" {
		etcdmain.Main(os.Args) // not a cobra command; returns when the server has stopped
		return
	}
	command, known := components[name]
	if !known {
		fmt.Fprintf(os.Stderr, "k8s: no component %q\n%s\n", name, usage())
		os.Exit(2)
	}
	os.Exit(cli.Run(command()))
}
