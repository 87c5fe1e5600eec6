// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
)

// istiod's names for what the mesh does with destinations outside of it.
const (
	passthroughCluster = "PassthroughCluster"
	blackholeCluster   = "BlackHoleCluster"
	blockAllHost       = "block_all"
)

// decide finds out where a request goes. It returns a reply if that is nowhere.
func (x *exchange) decide() *reply {
	m := x.in.Manager
	if m.NormalizePath || m.MergeSlashes {
		x.path = normalizePath(x.path, m.NormalizePath, m.MergeSlashes)
	}
	if x.snap = x.in.Snapshot(); x.snap == nil {
		return refuse(http.StatusServiceUnavailable, telemetry.NotReady, nil)
	}
	table := x.snap.Routes(m)
	if table == nil {
		return refuse(http.StatusNotFound, telemetry.NoRoute, fmt.Errorf("no route configuration %q", m.RouteName))
	}
	q := catalog.Request{
		Method: x.r.Method, Host: x.r.Host, Path: x.path, Scheme: "http", GRPC: x.grpc, Dst: x.in.Dst,
		Header: func(name string) []string { return x.r.Header[name] }, Rand: random(),
	}
	vh, route := table.Match(&q)
	if route == nil {
		return refuse(http.StatusNotFound, telemetry.NoRoute, fmt.Errorf("no route for %s%s in %s", x.r.Host, x.path, table.Config.Name))
	}
	x.route, x.rec.Route, x.counted = route, route.Name, vh.CountAttempts
	x.answers = [...]*resource.HeaderMutations{nil, &route.ResponseHeaders, &vh.ResponseHeaders}
	switch {
	case route.Redirect != nil:
		return redirect(route, x.r.Host, x.path)
	case route.Direct != nil:
		return x.direct(vh, route.Direct)
	}
	return x.toCluster(vh, route.Action)
}

// direct answers as the route says, unless that is the mesh's refusal of
// outside destinations, and they are allowed here.
func (x *exchange) direct(vh *resource.VirtualHost, d *resource.DirectResponse) *reply {
	if vh.Name != blockAllHost {
		return &reply{status: d.Status, body: d.Body}
	}
	if x.passOutside() {
		return nil
	}
	return refuse(d.Status, telemetry.Blackhole, fmt.Errorf("%s is not known to the mesh, whose policy is REGISTRY_ONLY", x.r.Host))
}

// toCluster prepares the request for the cluster that the route names.
func (x *exchange) toCluster(vh *resource.VirtualHost, a *resource.RouteAction) *reply {
	x.action = a
	w := catalog.Choose(a.Clusters, random())
	if w == nil {
		return refuse(http.StatusServiceUnavailable, telemetry.NoCluster, errors.New("the route has no cluster"))
	}
	x.answers[0] = &w.ResponseHeaders
	if w.Name == blackholeCluster && x.passOutside() {
		return nil
	}
	x.cluster = x.snap.Cluster(w.Name)
	if x.cluster == nil {
		status := a.NotFound
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		return refuse(status, telemetry.NoCluster, fmt.Errorf("cluster %s", w.Name))
	}
	x.rec.Cluster = x.cluster.Config
	switch w.Name {
	case blackholeCluster:
		return refuse(http.StatusBadGateway, telemetry.Blackhole, fmt.Errorf("%s is not known to the mesh, whose policy is REGISTRY_ONLY", x.r.Host))
	case passthroughCluster:
		// The host is unknown, but the address may well be the mesh's: then
		// it is never sent in clear.
		if x.snap.Owns(x.in.Dst.Addr()) {
			return refuse(http.StatusBadGateway, telemetry.Unrouted, fmt.Errorf("host %s is not known at %s", x.r.Host, x.in.Dst))
		}
		x.outside = true
	}
	x.rewrite(a)
	h := x.r.Header
	for _, m := range [...]*resource.HeaderMutations{&w.RequestHeaders, &x.route.RequestHeaders, &vh.RequestHeaders} {
		mutate(h, m)
		x.host = hostOf(x.host, m)
	}
	return x.checkUpgrade(a)
}

// passOutside passes a destination that the mesh does not know, where the user
// has allowed it against the mesh's policy.
func (x *exchange) passOutside() bool {
	if !x.p.cfg.OutsideAllow || x.snap.Owns(x.in.Dst.Addr()) {
		return false
	}
	x.action, x.cluster, x.outside = &resource.RouteAction{}, outsideCluster, true
	x.rec.Cluster = outsideCluster.Config
	return true
}

// outsideCluster stands in for PassthroughCluster where the mesh sends none.
var outsideCluster = &catalog.Cluster{Config: &resource.Cluster{
	Name: passthroughCluster, Discovery: resource.OriginalDst, HTTP: resource.Downstream,
}}

// checkUpgrade refuses a protocol that neither the listener nor the route
// allows, as Envoy does. Upgrading to h2c is optional for a server and not
// done: the request goes on as one of HTTP/1.
func (x *exchange) checkUpgrade(a *resource.RouteAction) *reply {
	up := strings.ToLower(x.upgrade)
	switch {
	case up == "":
		return nil
	case up == "h2c", strings.HasPrefix(up, "h2c,"):
		x.upgrade = ""
		return nil
	}
	for _, list := range [][]string{x.in.Manager.Upgrades, a.Upgrades} {
		for _, allowed := range list {
			if strings.EqualFold(allowed, up) {
				return nil
			}
		}
	}
	if x.outside {
		return nil
	}
	return refuse(http.StatusForbidden, telemetry.BadRequest, fmt.Errorf("the mesh does not allow the upgrade to %.40q", x.upgrade))
}

// rewrite changes path and host as the route says.
func (x *exchange) rewrite(a *resource.RouteAction) {
	path, query, hasQuery := strings.Cut(x.path, "?")
	switch {
	case a.HasPrefixRewrite:
		path = replacePrefix(&x.route.Match, path, a.PrefixRewrite)
	case a.RegexRewrite != nil:
		path = a.RegexRewrite.ReplaceAllString(path, a.RegexSubstitution)
	}
	x.path = path
	if hasQuery {
		x.path += "?" + query
	}
	if a.HostRewrite != "" {
		x.host = a.HostRewrite
	}
}

// replacePrefix puts a new beginning in the place of what the route matched.
func replacePrefix(m *resource.RouteMatch, path, with string) string {
	switch {
	case m.Path != "":
		return with
	case m.PathPrefix != "":
		return with + path[min(len(m.PathPrefix), len(path)):]
	}
	return with + path[min(len(m.Prefix), len(path)):]
}

// redirect answers with the location that the route gives.
func redirect(route *resource.Route, host, path string) *reply {
	r := route.Redirect
	scheme := "http"
	switch {
	case r.HTTPS:
		scheme = "https"
	case r.Scheme != "":
		scheme = r.Scheme
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = host, ""
	}
	if r.Host != "" {
		name, port = r.Host, ""
	}
	// A port that the old scheme implied would be wrong with the new one.
	if scheme != "http" && port == "80" || scheme != "https" && port == "443" {
		port = ""
	}
	if r.Port != 0 {
		port = strconv.Itoa(int(r.Port))
	}
	if port != "" {
		name = net.JoinHostPort(strings.Trim(name, "[]"), port)
	}
	path, query, hasQuery := strings.Cut(path, "?")
	switch {
	case r.Path != "":
		path = r.Path
		if strings.Contains(path, "?") {
			hasQuery = false
		}
	case r.HasPrefix:
		path = replacePrefix(&route.Match, path, r.PrefixRewrite)
	}
	if hasQuery && !r.StripQuery {
		path += "?" + query
	}
	status := r.Status
	if status == 0 {
		status = http.StatusMovedPermanently
	}
	return &reply{status: status, header: http.Header{"Location": {scheme + "://" + name + path}}}
}

// grpcTimeout reads a client's deadline, up to the route's bound; 0 is none.
func grpcTimeout(field string, most time.Duration) time.Duration {
	units := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second,
		'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}
	const maxDigits = 8 // of the gRPC protocol
	var d time.Duration
	if n := len(field) - 1; n > 0 && n <= maxDigits {
		v, err := strconv.ParseUint(field[:n], 10, 32)
		if unit, ok := units[field[n]]; ok && err == nil {
			d = time.Duration(v) * unit
		}
	}
	if most > 0 && (d == 0 || d > most) {
		return most
	}
	return d
}
