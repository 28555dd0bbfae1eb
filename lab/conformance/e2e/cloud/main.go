// Command cloud is what a cluster asks of a cloud for Services of type LoadBalancer: the stock service controller
// (finalizers, status, which nodes), over a balancer that is a router. Each Service gets an address of a pool in each
// of its families; the namespace it runs in, the lab's outside, gets an equal-cost route for it over the nodes that
// are healthy. Nothing is rewritten on the way (status.loadBalancer.ingress[].ipMode VIP): the node that a packet
// reaches has to know the address, and the pod sees who asked.
//
// Healthy is a node that the service controller names and, with externalTrafficPolicy Local, one whose
// healthCheckNodePort says 200, asked every second. A Service with client affinity goes to one healthy node alone.
// State is in memory: started anew, it gives each Service the address that its status has.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/cloud-provider/controllers/service"
	"k8s.io/component-base/featuregate"
	"k8s.io/component-base/metrics/prometheus/controllers"
)

const (
	probeTimeout = 900 * time.Millisecond
	workers      = 4
	nowhere      = "nowhere"
)

// settings make a router of this namespace: nodes send it, too, what is for a Service's address, when they leave the
// judgement of source ranges to the load balancer. What comes in by the link that it leaves by is no mistake here.
var settings = map[string]string{
	"ipv4/ip_forward":            "1",
	"ipv6/conf/all/forwarding":   "1",
	"ipv4/conf/*/send_redirects": "0",
}

// ground makes this namespace a place outside: settings, addresses, and a link for what is for nobody. It vanishes
// there, as on the way through a network; an error at once would be told to the client as its own.
func ground(source map[v1.IPFamily]netip.Addr) error {
	for pattern, value := range settings {
		names, err := filepath.Glob("/proc/sys/net/" + pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := os.WriteFile(name, []byte(value), 0); err != nil {
				return err
			}
		}
	}
	if _, err := net.InterfaceByName(nowhere); err != nil {
		if err := ip("link", "add", nowhere, "type", "bridge"); err != nil {
			return err
		}
	}
	if err := ip("link", "set", nowhere, "arp", "off", "up"); err != nil {
		return err
	}
	for _, address := range source {
		if err := ip("address", "replace", address.String(), "dev", "lo"); err != nil {
			return err
		}
	}
	return nil
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "file of the user that may change Services")
	pool4 := flag.String("pool4", "", "IPv4 addresses for Services")
	pool6 := flag.String("pool6", "", "IPv6 addresses for Services")
	source4 := flag.String("source4", "", "IPv4 address of this outside host")
	source6 := flag.String("source6", "", "IPv6 address of this outside host")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	four, six := netip.MustParsePrefix(*pool4), netip.MustParsePrefix(*pool6)
	source := map[v1.IPFamily]netip.Addr{
		v1.IPv4Protocol: netip.MustParseAddr(*source4), v1.IPv6Protocol: netip.MustParseAddr(*source6),
	}
	if err := ground(source); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	pools := map[v1.IPFamily]netip.Prefix{v1.IPv4Protocol: four, v1.IPv6Protocol: six}
	for family, pool := range pools {
		if err := ip("route", "replace", pool.String(), "dev", nowhere, "src", source[family].String()); err != nil {
			return err
		}
	}
	cloud := &outside{
		pools:     pools,
		source:    source,
		balancers: map[string]*balancer{},
		client:    http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	core := shared.Core().V1()
	controller, err := service.New(cloud, client, core.Services(), core.Nodes(), "lab", featuregate.NewFeatureGate())
	if err != nil {
		return err
	}
	shared.Start(ctx.Done())
	go cloud.watch(ctx)
	controller.Run(ctx, workers, controllers.NewControllerManagerMetrics("lab"))
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cloud:", err)
		os.Exit(1)
	}
}
