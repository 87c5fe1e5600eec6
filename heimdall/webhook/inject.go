// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

const (
	// InjectLabel, "true", asks for the tunnel.
	InjectLabel = "nasp.k8s.cisco.com/inject"

	containerName = "nasp-tun"
	istioSidecar  = "istio-proxy"
	// istioInject keeps Istio's injector away; it reads the label first, and
	// older ones the annotation.
	istioInject = "sidecar.istio.io/inject"
	istiodPort  = "15012"
	// metricsPort is the one that nasp's programs have.
	metricsPort = 16090
	// tokenLife is that of Istio's own sidecars; kubelet renews it.
	tokenLife = 43200
	// startLimit is how long the tunnel may take to be in the mesh, in seconds,
	// before it is started again: the pod's containers wait for it.
	startLimit = 120
)

var (
	errHostNetwork = errors.New("a pod with the host's network cannot have a tunnel: all of the node would be captured")
	errSidecar     = errors.New("the pod has Istio's sidecar: label it " + istioInject + "=false")
)

// inject puts the tunnel into a pod. It reports whether the pod has changed.
func (h *handler) inject(pod *corev1.Pod, namespace string, m kube.Mesh) (bool, error) {
	if pod.Spec.HostNetwork {
		return false, errHostNetwork
	}
	for _, c := range append(append([]corev1.Container(nil), pod.Spec.InitContainers...), pod.Spec.Containers...) {
		switch c.Name {
		case containerName:
			return false, nil // an earlier call of ours
		case istioSidecar:
			return false, errSidecar
		}
	}
	name := workloadName(pod)
	set(&pod.Annotations, istioInject, "false")
	setNew(&pod.Annotations, "prometheus.io/scrape", "true")
	setNew(&pod.Annotations, "prometheus.io/port", fmt.Sprint(metricsPort))
	setNew(&pod.Annotations, "prometheus.io/path", "/metrics")
	set(&pod.Labels, istioInject, "false")
	for key, value := range canonical(pod.Labels, name) {
		setNew(&pod.Labels, key, value)
	}
	pod.Spec.InitContainers = append([]corev1.Container{h.container(pod, namespace, name, m)}, pod.Spec.InitContainers...)
	pod.Spec.Volumes = append(pod.Spec.Volumes, volumes()...)
	return true, nil
}

// workloadName is that of the Deployment or the like which a pod is of.
func workloadName(pod *corev1.Pod) string {
	if owner := metav1.GetControllerOf(pod); owner != nil {
		// A ReplicaSet is named after its Deployment and the hash of its pods.
		if hash := pod.Labels["pod-template-hash"]; hash != "" {
			return strings.TrimSuffix(owner.Name, "-"+hash)
		}
		return owner.Name
	}
	if pod.Name != "" {
		return pod.Name
	}
	return strings.TrimSuffix(pod.GenerateName, "-")
}

// canonical are the labels by which Istio's telemetry knows a workload.
func canonical(labels map[string]string, name string) map[string]string {
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	service, revision := first("app.kubernetes.io/name", "app"), first("app.kubernetes.io/version", "version")
	if service == "" {
		service = name
	}
	if revision == "" {
		revision = "latest"
	}
	return map[string]string{"service.istio.io/canonical-name": service, "service.istio.io/canonical-revision": revision}
}

func (h *handler) container(pod *corev1.Pod, namespace, name string, m kube.Mesh) corev1.Container {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	args := []string{
		// Names are resolved by the cluster's own DNS.
		"up", "--dns=none", "--istiod=" + m.ServerName + ":" + istiodPort, "--istiod-server-name=" + m.ServerName,
		"--istiod-ca=/var/run/secrets/istio/root-cert.pem", "--istio-token-file=/var/run/secrets/tokens/istio-token",
		"--namespace=" + namespace, "--service-account=" + account, "--workload=" + name,
		"--cluster-id=" + m.ClusterID, "--mesh-id=" + m.MeshID, "--network=" + m.Network, "--revision=" + m.Revision,
		"--dns-domain=" + m.DNSDomain, "--instance-ip=$(POD_IP)",
		"--metrics-addr=[$(POD_IP)]:" + fmt.Sprint(metricsPort), "--log-format=json",
	}
	always, yes, no, root := corev1.ContainerRestartPolicyAlways, true, false, int64(0)
	return corev1.Container{
		Name: containerName, Image: h.cfg.Image, ImagePullPolicy: h.cfg.PullPolicy, RestartPolicy: &always, Args: args,
		Env: []corev1.EnvVar{{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}},
		Ports: []corev1.ContainerPort{{
			Name: "http-tun-prom", ContainerPort: metricsPort, Protocol: corev1.ProtocolTCP,
		}},
		StartupProbe: &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(metricsPort)}},
			PeriodSeconds: 1, FailureThreshold: startLimit,
		},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("20m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
		}},
		// Root for the device alone: of its capabilities only one is left.
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: &root, RunAsNonRoot: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "nasp-tun-token", MountPath: "/var/run/secrets/tokens", ReadOnly: true},
			{Name: "nasp-tun-root", MountPath: "/var/run/secrets/istio", ReadOnly: true},
			{Name: "nasp-tun-device", MountPath: "/dev/net/tun"},
			{Name: "nasp-tun-state", MountPath: "/var/lib/nasp-tun"},
			{Name: "nasp-tun-run", MountPath: "/run/nasp-tun"},
		},
	}
}

func volumes() []corev1.Volume {
	life, device := int64(tokenLife), corev1.HostPathCharDev
	memory := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}
	return []corev1.Volume{
		{Name: "nasp-tun-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: kube.IstioAudience, ExpirationSeconds: &life, Path: "istio-token",
			}}},
		}}},
		{Name: "nasp-tun-root", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "istio-ca-root-cert"}, // istiod keeps one in each namespace
		}}},
		{Name: "nasp-tun-device", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/dev/net/tun", Type: &device}}},
		{Name: "nasp-tun-state", VolumeSource: memory},
		{Name: "nasp-tun-run", VolumeSource: memory},
	}
}

func set(m *map[string]string, key, value string) {
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[key] = value
}

// setNew leaves what the pod's author has set.
func setNew(m *map[string]string, key, value string) {
	if _, ok := (*m)[key]; !ok {
		set(m, key, value)
	}
}
