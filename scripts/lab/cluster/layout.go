// SPDX-License-Identifier: Apache-2.0

package cluster

// The network namespaces of the lab.
const (
	Node    = "nasp-lab-node"
	Gateway = "nasp-lab-gateway"
	Laptop  = "nasp-lab-laptop"
	EchoV1  = "nasp-lab-echo-v1"
	EchoV2  = "nasp-lab-echo-v2"
)

// The addresses of the lab. They stand in the objects too.
const (
	NodeAddress    = "10.244.0.1"
	EchoV1Address  = "10.244.0.5"
	EchoV2Address  = "10.244.0.6"
	gatewayInside  = "10.244.0.9"
	GatewayAddress = "172.30.0.10" // the only one that the laptop reaches
	LaptopAddress  = "172.30.0.2"
	prefixLength   = "/24"
)

// Where the laptop finds istiod, and by which name it knows it.
const (
	Istiod     = GatewayAddress + ":15012"
	IstiodName = "istiod.istio-system.svc"
)

// Names of the processes, for [Lab.Restart].
const (
	Etcd        = "etcd"
	APIServer   = "kube-apiserver"
	IstiodMain  = "istiod"
	IstiodEnvoy = "istiod-envoy"
	AgentEchoV1 = "agent-echo-v1"
	AgentEchoV2 = "agent-echo-v2"
	AgentGW     = "agent-gateway"
	AppEchoV1   = "echo-v1"
	AppEchoV2   = "echo-v2"
)

const (
	apiURL  = "https://" + NodeAddress + ":6443"
	etcdURL = "http://127.0.0.1:2379"
	// envoyIstiod is the istiod of the Envoys, by a name that its certificate
	// holds and /etc/hosts resolves.
	envoyIstiod = "istiod-envoy.istio-system.svc:15112"
	// inboundPort is where a sidecar expects what is redirected to it.
	inboundPort = "15006"
)

// A pod is a namespace with an Envoy, and maybe an application, in it.
type pod struct {
	netns, address           string
	name, namespace, account string // of the Pod object
	agent, app               string // names of the processes; app is "" for a gateway
	gateway                  bool
	labels                   []string
}

var pods = []pod{
	{
		netns: EchoV1, address: EchoV1Address, name: "echo-v1", namespace: "testing", account: "default", agent: AgentEchoV1, app: AppEchoV1,
		labels: []string{`app="echo"`, `version="v1"`, `service.istio.io/canonical-name="echo"`, `service.istio.io/canonical-revision="v1"`, `security.istio.io/tlsMode="istio"`, `topology.istio.io/network="network1"`},
	},
	{
		netns: EchoV2, address: EchoV2Address, name: "echo-v2", namespace: "testing", account: "default", agent: AgentEchoV2, app: AppEchoV2,
		labels: []string{`app="echo"`, `version="v2"`, `service.istio.io/canonical-name="echo"`, `service.istio.io/canonical-revision="v2"`, `security.istio.io/tlsMode="istio"`, `topology.istio.io/network="network1"`},
	},
	{
		netns: Gateway, address: gatewayInside, name: "eastwest-1", namespace: "istio-system", account: "eastwest", agent: AgentGW, gateway: true,
		labels: []string{`istio="eastwestgateway"`, `topology.istio.io/network="network1"`},
	},
}
