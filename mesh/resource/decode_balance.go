// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	providedv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/cluster_provided/v3"
	policiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	maglevv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	ringv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	roundv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// defaultPanic is Envoy's panic threshold in percent.
const defaultPanic = 50

var (
	commonLBFields = fields("healthy_panic_threshold", "locality_weighted_lb_config",
		"update_merge_window", "ignore_new_hosts_until_first_hc")
	leastFields = fields("choice_count", "active_request_bias", "locality_lb_config")
	roundFields = fields("locality_lb_config")
	noFields    = fields()
)

// balance reads how an endpoint is chosen.
func (c *Cluster) balance(pb *clusterv3.Cluster, n *notes) error {
	b := &c.Balance
	common := pb.GetCommonLbConfig()
	n.rest("cluster.common_lb_config", common, commonLBFields)
	b.PanicThreshold = defaultPanic
	if t := common.GetHealthyPanicThreshold(); t != nil {
		b.PanicThreshold = t.GetValue()
	}
	b.LocalityWeighted = common.GetLocalityWeightedLbConfig() != nil
	if pb.GetLoadBalancingPolicy() != nil {
		return b.typed(pb.GetLoadBalancingPolicy(), n)
	}
	switch pb.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN:
		b.Policy = RoundRobin
		n.rest("cluster.round_robin_lb_config", pb.GetRoundRobinLbConfig(), noFields)
	case clusterv3.Cluster_LEAST_REQUEST:
		least := pb.GetLeastRequestLbConfig()
		n.rest("cluster.least_request_lb_config", least, leastFields)
		b.leastRequest(least.GetChoiceCount().GetValue(), least.GetActiveRequestBias() != nil,
			least.GetActiveRequestBias().GetDefaultValue())
	case clusterv3.Cluster_RANDOM:
		b.Policy = Random
	case clusterv3.Cluster_RING_HASH:
		b.hashed(RingHash, n)
	case clusterv3.Cluster_MAGLEV:
		b.hashed(Maglev, n)
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		b.Policy = ClusterProvided
	default:
		return fmt.Errorf("lb_policy %s", pb.GetLbPolicy())
	}
	return nil
}

func (b *BalanceConfig) leastRequest(choices uint32, biased bool, bias float64) {
	b.Policy, b.ChoiceCount, b.ActiveBias = LeastRequest, choices, bias
	b.IgnoreLoad = biased && bias == 0
}

// hashed takes a policy that needs what is hashed, which is not built yet:
// the choice is random instead, so that load is spread, if not kept together.
func (b *BalanceConfig) hashed(p Policy, n *notes) {
	b.Policy = p
	n.add("lb_policy ", map[Policy]string{RingHash: "RING_HASH", Maglev: "MAGLEV"}[p])
}

// typed reads load_balancing_policy: the first of the list that is known
// counts, as in Envoy.
func (b *BalanceConfig) typed(list *clusterv3.LoadBalancingPolicy, n *notes) error {
	for _, p := range list.GetPolicies() {
		config := p.GetTypedExtensionConfig().GetTypedConfig()
		known, err := b.typedPolicy(config, n)
		if err != nil {
			return fmt.Errorf("load balancing policy %q: %w", p.GetTypedExtensionConfig().GetName(), err)
		}
		if known {
			return nil
		}
		n.add("lb_policy ", typeName(config))
	}
	b.Policy = LeastRequest
	return nil
}

func (b *BalanceConfig) typedPolicy(config *anypb.Any, n *notes) (bool, error) {
	var (
		least leastv3.LeastRequest
		round roundv3.RoundRobin
		rand  randomv3.Random
	)
	for _, policy := range []struct {
		config proto.Message
		take   func()
	}{
		{&least, func() {
			n.rest("least_request", &least, leastFields)
			b.leastRequest(least.GetChoiceCount().GetValue(), least.GetActiveRequestBias() != nil,
				least.GetActiveRequestBias().GetDefaultValue())
			b.locality(least.GetLocalityLbConfig(), n)
		}},
		{&round, func() {
			n.rest("round_robin", &round, roundFields)
			b.Policy = RoundRobin
			b.locality(round.GetLocalityLbConfig(), n)
		}},
		{&rand, func() {
			b.Policy = Random
			b.locality(rand.GetLocalityLbConfig(), n)
		}},
		{&ringv3.RingHash{}, func() { b.hashed(RingHash, n) }},
		{&maglevv3.Maglev{}, func() { b.hashed(Maglev, n) }},
		{&providedv3.ClusterProvided{}, func() { b.Policy = ClusterProvided }},
	} {
		if ok, err := open(config, policy.config); ok {
			policy.take()
			return true, err
		}
	}
	return false, nil
}

func (b *BalanceConfig) locality(c *policiesv3.LocalityLbConfig, n *notes) {
	if c.GetLocalityWeightedLbConfig() != nil {
		b.LocalityWeighted = true
	}
	if c.GetZoneAwareLbConfig() != nil {
		n.add("zone_aware_lb_config")
	}
}
