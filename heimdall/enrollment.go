// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// defaultServerName is istiod's name where an enrolment does not tell it.
const defaultServerName = "istiod.istio-system.svc"

// An Enrollment is what a workload needs to join the mesh.
type Enrollment struct {
	// IstiodAddress is where istiod is dialled (host:port), and
	// IstiodServerName the name that its certificate must bear. They are two
	// things: from outside a cluster istiod is reached through a gateway.
	IstiodAddress    string
	IstiodServerName string
	// OtherAddresses lead to istiod too, if a gateway has several.
	OtherAddresses []string
	// Roots are the PEM certificates by which istiod and the mesh are
	// verified.
	Roots []byte
	// Token is accepted by istiod (audience istio-ca) until TokenExpiry.
	Token       Secret
	TokenExpiry time.Time // zero: not known

	// AccessToken is a new token for Heimdall itself, to be used in place of
	// the one shown; zero: keep it.
	AccessToken       Secret
	AccessTokenExpiry time.Time // zero: not known

	ClusterID    string
	MeshID       string
	TrustDomain  string
	Revision     string
	IstioVersion string

	Namespace         string
	ServiceAccount    string
	WorkloadName      string
	Owner             string // of the workload: kubernetes://apis/v1/namespaces/NS/workloadgroups/NAME
	Labels            map[string]string
	Network           string
	InstanceIPs       []netip.Addr
	AutoRegisterGroup string // the WorkloadGroup of which to become an entry; "": none

	DNSDomain     string
	SearchDomains []string
}

var (
	errNoNamespace = errors.New("no namespace")
	errNoToken     = errors.New("no token for istiod")
	errNoRoots     = errors.New("no root certificates")
)

// Validate reports what is missing to join.
func (e *Enrollment) Validate() error {
	if _, _, err := net.SplitHostPort(e.IstiodAddress); err != nil {
		return fmt.Errorf("address of istiod %q: %w", e.IstiodAddress, err)
	}
	if e.Namespace == "" {
		return errNoNamespace
	}
	if e.Token.IsZero() {
		return errNoToken
	}
	if b, _ := pem.Decode(e.Roots); b == nil || b.Type != "CERTIFICATE" {
		return errNoRoots
	}
	return nil
}

// complete fills in what follows from the rest.
func (e *Enrollment) complete() {
	if e.IstiodServerName == "" {
		e.IstiodServerName = defaultServerName
	}
	if e.ServiceAccount == "" {
		e.ServiceAccount = "default"
	}
	if e.TokenExpiry.IsZero() {
		_, e.TokenExpiry = e.Token.Life()
	}
	if e.AccessTokenExpiry.IsZero() {
		_, e.AccessTokenExpiry = e.AccessToken.Life()
	}
}
