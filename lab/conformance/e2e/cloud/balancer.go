package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	cloudprovider "k8s.io/cloud-provider"
	"k8s.io/klog/v2"
)

const probePeriod = time.Second

// balancer is one Service's: its addresses, the nodes it may use, and the route that stands.
type balancer struct {
	service   *v1.Service
	nodes     []*v1.Node
	addresses []netip.Addr
	routes    map[netip.Addr]string
}

// outside implements cloudprovider.Interface and cloudprovider.LoadBalancer.
type outside struct {
	mutex     sync.Mutex
	pools     map[v1.IPFamily]netip.Prefix
	source    map[v1.IPFamily]netip.Addr
	balancers map[string]*balancer
	client    http.Client
}

func (o *outside) Initialize(cloudprovider.ControllerClientBuilder, <-chan struct{}) {}
func (o *outside) LoadBalancer() (cloudprovider.LoadBalancer, bool)                  { return o, true }
func (o *outside) Instances() (cloudprovider.Instances, bool)                        { return nil, false }
func (o *outside) InstancesV2() (cloudprovider.InstancesV2, bool)                    { return nil, false }
func (o *outside) Zones() (cloudprovider.Zones, bool)                                { return nil, false }
func (o *outside) Clusters() (cloudprovider.Clusters, bool)                          { return nil, false }
func (o *outside) Routes() (cloudprovider.Routes, bool)                              { return nil, false }
func (o *outside) ProviderName() string                                              { return "lab" }
func (o *outside) HasClusterID() bool                                                { return true }

func (o *outside) GetLoadBalancerName(_ context.Context, _ string, s *v1.Service) string {
	return cloudprovider.DefaultLoadBalancerName(s)
}

func (o *outside) GetLoadBalancer(_ context.Context, _ string, s *v1.Service) (*v1.LoadBalancerStatus, bool, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	known, exists := o.balancers[string(s.UID)]
	if !exists {
		return nil, false, nil
	}
	return status(known.addresses), true, nil
}

func (o *outside) EnsureLoadBalancer(
	_ context.Context, _ string, s *v1.Service, nodes []*v1.Node,
) (*v1.LoadBalancerStatus, error) {
	o.mutex.Lock()
	one, exists := o.balancers[string(s.UID)]
	if !exists {
		addresses, err := o.allocate(s)
		if err != nil {
			o.mutex.Unlock()
			return nil, err
		}
		one = &balancer{addresses: addresses, routes: map[netip.Addr]string{}}
		o.balancers[string(s.UID)] = one
	}
	one.service, one.nodes = s, nodes
	o.mutex.Unlock()
	return status(one.addresses), o.route(string(s.UID))
}

func (o *outside) UpdateLoadBalancer(ctx context.Context, name string, s *v1.Service, nodes []*v1.Node) error {
	_, err := o.EnsureLoadBalancer(ctx, name, s, nodes)
	return err
}

func (o *outside) EnsureLoadBalancerDeleted(_ context.Context, _ string, s *v1.Service) error {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	one, exists := o.balancers[string(s.UID)]
	if !exists {
		return nil
	}
	for address := range one.routes {
		if err := ip("route", "del", address.String()); err != nil {
			return err
		}
		delete(one.routes, address)
	}
	delete(o.balancers, string(s.UID))
	return nil
}

// allocate gives the addresses that the status has (after a restart), else the first free one of each family.
func (o *outside) allocate(s *v1.Service) ([]netip.Addr, error) {
	used := map[netip.Addr]bool{}
	for _, other := range o.balancers {
		for _, address := range other.addresses {
			used[address] = true
		}
	}
	var found []netip.Addr
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if address, err := netip.ParseAddr(ingress.IP); err == nil && !used[address] {
			found = append(found, address)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	for _, family := range s.Spec.IPFamilies {
		pool := o.pools[family]
		address := pool.Addr().Next()
		for used[address] {
			address = address.Next()
		}
		if !pool.Contains(address) {
			return nil, fmt.Errorf("no address of %s is free", pool)
		}
		found = append(found, address)
	}
	return found, nil
}

// route brings the routes of one Service to what its nodes' health asks for.
func (o *outside) route(uid string) error {
	o.mutex.Lock()
	one, exists := o.balancers[uid]
	if !exists {
		o.mutex.Unlock()
		return nil
	}
	s, nodes := one.service, one.nodes
	o.mutex.Unlock()
	healthy := o.healthy(s, nodes)
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.balancers[uid] != one {
		return nil
	}
	for _, address := range one.addresses {
		words := o.words(s, address, healthy)
		line := strings.Join(words, " ")
		if one.routes[address] == line {
			continue
		}
		if err := ip(words...); err != nil {
			return err
		}
		klog.InfoS("route", "service", klog.KObj(s), "is", line)
		one.routes[address] = line
	}
	return nil
}

// words are the arguments of `ip` for the route of one address.
func (o *outside) words(s *v1.Service, address netip.Addr, healthy []*v1.Node) []string {
	family := v1.IPv4Protocol
	if address.Is6() {
		family = v1.IPv6Protocol
	}
	var hops []string
	for _, node := range healthy {
		for _, has := range node.Status.Addresses {
			hop, err := netip.ParseAddr(has.Address)
			if err == nil && has.Type == v1.NodeInternalIP && hop.Is6() == address.Is6() {
				hops = append(hops, "nexthop", "via", hop.String())
			}
		}
	}
	if len(hops) == 0 {
		return []string{"route", "replace", address.String(), "dev", nowhere, "src", o.source[family].String()}
	}
	if s.Spec.SessionAffinity == v1.ServiceAffinityClientIP {
		hops = hops[:3]
	}
	return append([]string{"route", "replace", address.String(), "src", o.source[family].String()}, hops...)
}

// healthy asks the nodes of a Service with a health check port, all at once; nodes come sorted by name.
func (o *outside) healthy(s *v1.Service, nodes []*v1.Node) []*v1.Node {
	sorted := slices.SortedFunc(slices.Values(nodes), func(a, b *v1.Node) int { return strings.Compare(a.Name, b.Name) })
	if s.Spec.HealthCheckNodePort == 0 {
		return sorted
	}
	said := make([]bool, len(sorted))
	var wait sync.WaitGroup
	for i, node := range sorted {
		wait.Go(func() { said[i] = o.answers(node, s.Spec.HealthCheckNodePort) })
	}
	wait.Wait()
	var found []*v1.Node
	for i, node := range sorted {
		if said[i] {
			found = append(found, node)
		}
	}
	return found
}

func (o *outside) answers(node *v1.Node, port int32) bool {
	for _, has := range node.Status.Addresses {
		address, err := netip.ParseAddr(has.Address)
		if err != nil || has.Type != v1.NodeInternalIP {
			continue
		}
		answer, err := o.client.Get(fmt.Sprintf("http://%s/healthz", netip.AddrPortFrom(address, uint16(port))))
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	}
	return false
}

// watch asks for health again and again.
func (o *outside) watch(ctx context.Context) {
	for ctx.Err() == nil {
		o.mutex.Lock()
		var checked []string
		for uid, one := range o.balancers {
			if one.service.Spec.HealthCheckNodePort != 0 {
				checked = append(checked, uid)
			}
		}
		o.mutex.Unlock()
		for _, uid := range checked {
			go func() {
				if err := o.route(uid); err != nil {
					klog.ErrorS(err, "route")
				}
			}()
		}
		select {
		case <-ctx.Done():
		case <-time.After(probePeriod):
		}
	}
}

func status(addresses []netip.Addr) *v1.LoadBalancerStatus {
	mode, said := v1.LoadBalancerIPModeVIP, &v1.LoadBalancerStatus{}
	for _, address := range addresses {
		said.Ingress = append(said.Ingress, v1.LoadBalancerIngress{IP: address.String(), IPMode: &mode})
	}
	return said
}

func ip(words ...string) error {
	said, err := exec.Command("ip", words...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(string(said)))
	}
	return nil
}
