// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: testing}
spec: {mtls: {mode: STRICT}}
`

func TestStrictAdmitsUsAndNoPlainText(t *testing.T) {
	plain := func() error {
		_, err := cluster.Fetch(context.Background(), cluster.Node, "http://"+cluster.EchoV1Address+":8080/")
		return err
	}
	if err := plain(); err != nil {
		t.Fatalf("plain text is refused before STRICT: %v", err)
	}
	apply(t, strict, plain)
	eventually(t, "plain text to be refused", func() error {
		if plain() == nil {
			return errors.New("still answered")
		}
		return nil
	})
	s := open(t, "test-http")
	s.run("curl", "-sS", "--fail", "http://echo.testing").want(t, 0, "URI="+identity("test-http"))
	s.run(naspTun(), "__demo-client", "tcp", "echo.testing:9000").want(t, 0, "response: name 2\n")
}

const onlyHTTP = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-test-http, namespace: testing}
spec:
  selector: {matchLabels: {app: echo}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/external/sa/test-http]}}]}]
`

func TestPolicyAdmitsOneAccountAndRefusesAnother(t *testing.T) {
	admitted, refused := open(t, "test-http"), open(t, "test-tcp")
	apply(t, onlyHTTP, func() error {
		for _, code := range refused.burst(20) { // both pods
			if code != "200" {
				return fmt.Errorf("status %s", code)
			}
		}
		return nil
	})
	eventually(t, "the policy to hold", func() error {
		for _, code := range refused.burst(20) { // both pods have to know it
			if code != "403" {
				return fmt.Errorf("status %s", code)
			}
		}
		return nil
	})
	refused.run("curl", "-sS", "http://echo.testing").want(t, 0, "RBAC: access denied")
	admitted.run("curl", "-sS", "--fail", "http://echo.testing").want(t, 0, "URI="+identity("test-http"))

	admitted.run(naspTun(), "__demo-client", "tcp", "echo.testing:9000").want(t, 0, "response: name 2\n")
	r := refused.run(naspTun(), "__demo-client", "tcp", "echo.testing:9000")
	if r.code == 0 || strings.Contains(r.out, "response") {
		t.Errorf("the refused account got bytes back: %s", r.out)
	}
	// The refusal is the pod's, not ours: we have sent it as the mesh says.
	refused.ask("explain", "echo.testing").want(t, 0, "by mutual TLS", identity("test-tcp"))
	refused.recorded("a request that the pod refused", "status=403", "flags=-", "reason=-", "peer="+idEcho)
	refused.recorded("a connection that the pod closed", "protocol=tcp", "security=mutual_tls", "peer="+idEcho)
}
