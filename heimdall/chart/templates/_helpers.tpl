{{- define "heimdall.labels" -}}
app.kubernetes.io/name: heimdall
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "heimdall.selector" -}}
app.kubernetes.io/name: heimdall
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "heimdall.tlsSecret" -}}
{{ .Values.tls.secretName | default (printf "%s-tls" .Release.Name) }}
{{- end }}

{{- define "heimdall.gatewayNamespace" -}}
{{ .Values.gateway.namespace | default .Values.istio.namespace }}
{{- end }}

{{- /* The object of a RoleBinding: the one account of this chart. */ -}}
{{- define "heimdall.subject" -}}
subjects:
- {kind: ServiceAccount, name: {{ .Release.Name }}, namespace: {{ .Release.Namespace }}}
{{- end }}
