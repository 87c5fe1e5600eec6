// SPDX-License-Identifier: Apache-2.0

// Package objects holds the Kubernetes objects of the lab. All but lab.yaml
// could be applied to any cluster; lab.yaml is what kubelets and controllers
// would have made, with the addresses of the lab.
package objects

import "embed"

// Files are the objects, and below mesh the mesh configs of the two istiods.
//
//go:embed *.yaml mesh/*.yaml
var Files embed.FS

// Order is that in which the files are applied.
var Order = []string{"namespaces.yaml", "echo.yaml", "gateway.yaml", "expose-istiod.yaml", "expose-heimdall.yaml", "workloadgroups.yaml", "lab.yaml"}
