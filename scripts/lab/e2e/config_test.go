// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

const subsets = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: testing}
spec:
  host: echo.testing.svc.cluster.local
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: testing}
spec:
  hosts: [echo.testing.svc.cluster.local]
  http:
  - match: [{headers: {x-version: {exact: v2}}}]
    route: [{destination: {host: echo.testing.svc.cluster.local, subset: v2}}]
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
  - route: [{destination: {host: echo.testing.svc.cluster.local, subset: v1}}]
    headers: {request: {set: {x-routed: "yes"}}}
`

// A route is taken up by a session that runs, and the SNI of a subset leads
// the gateway to its pods alone.
func TestRoutesAndSubsetsAreTakenUp(t *testing.T) {
	s := open(t, "test-http")
	s.run("curl", "-sS", "--fail", "http://echo.testing").want(t, 0)
	apply(t, subsets, func() error {
		if r := s.run("curl", "-sS", "http://echo.testing"); r.code != 0 || strings.Contains(r.out, "x-routed") {
			return fmt.Errorf("got %d %s%s", r.code, r.out, r.errs)
		}
		return nil
	})
	eventually(t, "the route to hold", func() error {
		r := s.run("curl", "-sS", "http://echo.testing")
		if !strings.Contains(r.out, "x-routed=yes\n") {
			return fmt.Errorf("got %s%s", r.out, r.errs)
		}
		return nil
	})
	for range 6 {
		s.run("curl", "-sS", "--fail", "http://echo.testing").want(t, 0, "Hostname: echo-v1\n")
		s.run("curl", "-sS", "--fail", "-H", "x-version: v2", "http://echo.testing").want(t, 0, "Hostname: echo-v2\n")
	}
	s.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "http://echo.testing/old").want(t, 0, "301 http://echo.testing/new")
	s.ask("explain", "echo.testing").want(t, 0, "SNI outbound_.80_.v1_.echo.testing.svc.cluster.local")
}

const outside = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: elsewhere, namespace: external}
spec:
  hosts: [elsewhere.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 8081, name: http, protocol: HTTP}]
  endpoints: [{address: 172.30.0.2, network: network2}]
`

// What istiod knows without an address gets one, and is reached as istiod
// says: in clear, since this one is outside the mesh.
func TestServiceEntryHasAnAddressAndIsReached(t *testing.T) {
	server := onLaptop(t, lab.EchoProgram(), "-name", "outside", "-http", "8081")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		_ = server.Wait()
	})
	s := open(t, "test-http")
	apply(t, outside, func() error {
		if r := s.run("getent", "hosts", "elsewhere.example"); r.code == 0 {
			return fmt.Errorf("still known: %s", r.out)
		}
		return nil
	})
	var r result
	eventually(t, "the entry to be reached", func() error {
		if r = s.run("curl", "-sS", "--fail", "-w", "%{remote_ip}", "http://elsewhere.example:8081"); r.code != 0 {
			return fmt.Errorf("curl: %d %s%s", r.code, r.out, r.errs)
		}
		return nil
	})
	r.want(t, 0, "Hostname: outside\n", "240.240.")
	if strings.Contains(r.out, "x-forwarded-client-cert") {
		t.Errorf("a certificate was proved to a server without TLS: %s", r.out)
	}
	s.ask("explain", "elsewhere.example:8081").want(t, 0, "sent in clear to "+cluster.LaptopAddress+":8081")
}

const registryOnly = `
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: external}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{hosts: ["testing/*"]}]
`

func TestRegistryOnlyForbidsWhatTheMeshDoesNotKnow(t *testing.T) {
	s := open(t, "test-http")
	// Something outside the mesh that answers: the gateway's readiness.
	url := "http://" + cluster.GatewayAddress + ":15021/healthz/ready"
	fetch := []string{"curl", "-sS", "-o", "/dev/null", "-m", "5", url}
	passes := func() error {
		if r := s.run(fetch...); r.code != 0 {
			return fmt.Errorf("curl ended with %d: %s", r.code, r.errs)
		}
		return nil
	}
	if err := passes(); err != nil {
		t.Fatal(err)
	}
	apply(t, registryOnly, passes)
	eventually(t, "a refusal", func() error {
		if r := s.run(fetch...); r.code != 7 { // curl's for a refused connection
			return fmt.Errorf("curl ended with %d: %s", r.code, r.errs)
		}
		return nil
	})
	s.recorded("the refusal", "dst="+cluster.GatewayAddress+":15021", "reason=blackhole")
	if r := s.ask("explain", cluster.GatewayAddress+":15021"); r.code == 0 || !strings.Contains(r.out, "REGISTRY_ONLY") {
		t.Errorf("explain ended with %d and said %s%s", r.code, r.out, r.errs)
	}
	s.run("curl", "-sS", "--fail", "http://echo.testing").want(t, 0)
	finish(t, execAs(t, t.TempDir(), "test-http", []string{"--outside=allow"}, fetch...)).want(t, 0)
}
