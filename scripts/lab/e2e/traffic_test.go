// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

// The proof of the quick start: a real Envoy has verified who calls.
func TestCurlIsAnsweredAndTheCallerIsKnown(t *testing.T) {
	r := as(t, "test-http", "curl", "-sS", "--fail", "http://echo.testing")
	r.want(t, 0, "Hostname: echo-v", "host=echo.testing\n",
		"x-forwarded-client-cert=By="+idEcho+";Hash=", `;Subject="";URI=`+identity("test-http")+"\n")
	t.Logf("\n%s", r.out)
}

func TestBytesAreEchoed(t *testing.T) {
	r := as(t, "test-tcp", naspTun(), "__demo-client", "tcp", "echo.testing:9000")
	r.want(t, 0, "request: name 0, response: name 0\n", "request: name 2, response: name 2\n")
	t.Logf("\n%s", r.out)
}

func TestGRPCIsAnsweredAndTheCallerIsKnown(t *testing.T) {
	r := as(t, "test-grpc", naspTun(), "__demo-client", "grpc", "echo.testing:8082")
	r.want(t, 0, "Hostname: echo-v", "message=hello\n", "By="+idEcho+";", "URI="+identity("test-grpc"))
	t.Logf("\n%s", r.out)
}

// All endpoints of a remote network are one address, that of its gateway, so
// that it is the gateway that spreads, by connection.
func TestSeparateCurlsAreSpread(t *testing.T) {
	const requests, least = 40, 8
	var answers strings.Builder
	for range requests {
		r := as(t, "test-http", "curl", "-sS", "--fail", "http://echo.testing")
		r.want(t, 0)
		answers.WriteString(r.out)
	}
	checkSpread(t, answers.String(), requests, least)
}

func TestCurlsAtOnceInOneSessionAreSpread(t *testing.T) {
	s := open(t, "test-http")
	const requests, least = 40, 4
	r := s.run("sh", "-c", fmt.Sprintf("seq %d | xargs -P 10 -I{} curl -sS --fail 'http://echo.testing/delay/100ms' -o /dev/null", requests))
	r.want(t, 0)
	r = s.run("sh", "-c", fmt.Sprintf("seq %d | xargs -P 10 -I{} curl -sS --fail 'http://echo.testing'", requests))
	r.want(t, 0)
	checkSpread(t, r.out, requests, least)
}

// A connection that is kept alive, or taken up again out of the pool, stays
// where the gateway has led it; so it is with an Envoy as client.
func TestOneConnectionStaysOnOnePod(t *testing.T) {
	s := open(t, "test-http")
	r := s.run("curl", "-sS", "--fail", "http://echo.testing/[1-20]")
	r.want(t, 0)
	v1, v2 := strings.Count(r.out, "Hostname: echo-v1\n"), strings.Count(r.out, "Hostname: echo-v2\n")
	if v1+v2 != 20 || v1 != 0 && v2 != 0 {
		t.Errorf("v1 answered %d and v2 %d of 20 requests", v1, v2)
	}
}

func checkSpread(t *testing.T, answers string, requests, least int) {
	t.Helper()
	v1, v2 := strings.Count(answers, "Hostname: echo-v1\n"), strings.Count(answers, "Hostname: echo-v2\n")
	t.Logf("v1 answered %d, v2 %d", v1, v2)
	if v1+v2 != requests || v1 < least || v2 < least {
		t.Errorf("v1 answered %d and v2 %d of %d requests, want at least %d each", v1, v2, requests, least)
	}
}

// The laptop must owe its access to the gateway, not to a way round it.
func TestLaptopReachesTheGatewayAlone(t *testing.T) {
	for _, address := range []string{cluster.EchoV1Address + ":8080", cluster.NodeAddress + ":6443", cluster.NodeAddress + ":15012"} {
		if c, err := cluster.DialIn(cluster.Laptop)(t.Context(), "tcp", address); err == nil {
			c.Close()
			t.Errorf("the laptop reaches %s", address)
		}
	}
	for _, port := range []string{"15012", "15443"} {
		c, err := cluster.DialIn(cluster.Laptop)(t.Context(), "tcp", cluster.GatewayAddress+":"+port)
		if err != nil {
			t.Error(err)
			continue
		}
		c.Close()
	}
}
