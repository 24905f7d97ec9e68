{{/* Names. */}}
{{- define "steersman.fullname" -}}
{{- if .Values.fullnameOverride -}}{{ .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" }}{{- end -}}
{{- end -}}
{{- end }}

{{- define "steersman.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "steersman.selector" . }}
{{- end }}

{{- define "steersman.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* An image: a digest goes before a tag. */}}
{{- define "steersman.image" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end }}

{{/* Whether the chart runs Envoy. */}}
{{- define "steersman.hasGateway" -}}
{{- if or (eq .Values.mode "sidecar") (and (eq .Values.mode "shared") .Values.gateway.enabled) -}}yes{{- end -}}
{{- end }}

{{/* Whether KEDA asks the service. */}}
{{- define "steersman.scaler" -}}
{{- if and .Values.scaling.enabled (ne .Values.scaling.mode "hpa") -}}yes{{- end -}}
{{- end }}

{{/* The replicas' namespace. */}}
{{- define "steersman.replicasNamespace" -}}
{{- (first .Values.scaling.targets).namespace | default .Release.Namespace -}}
{{- end }}

{{/* What the pod security standard `restricted` asks for. */}}
{{- define "steersman.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "steersman.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The configuration that every mode begins with. */}}
{{- define "steersman.configBase" -}}
{{- $over := dict "version" 1 -}}
{{- if eq .Values.mode "picker" -}}
{{- $_ := set $over "picker" (dict "enabled" true) -}}
{{- end -}}
{{- if ne .Values.mode "picker" -}}
{{- $_ := set $over "gateway" (dict "listen" "0.0.0.0:8080" "envoy_admin" "127.0.0.1:9901") -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- $token := dict "name" "prometheus" "sha256" .Values.metrics.tokenSha256 "scope" "read" -}}
{{- $own := (.Values.config.admin | default dict) -}}
{{- $_ := set $over "admin" (dict "listen" (printf "0.0.0.0:%v" .Values.metrics.port) "auth" "token" "tokens" (append ($own.tokens | default list) $token)) -}}
{{- end -}}
{{- if .Values.agents.enabled -}}
{{- $telemetry := dict "listen" (list "0.0.0.0:50052") "auth" .Values.agents.auth -}}
{{- if .Values.agents.nodes -}}{{- $_ := set $telemetry "nodes" .Values.agents.nodes -}}{{- end -}}
{{- $_ := set $over "telemetry" $telemetry -}}
{{- end -}}
{{- /* In a volume of the service's alone: Envoy's container has no way to the operators' socket. */}}
{{- $service := dict "run_dir" "/var/lib/steersman/run" -}}
{{- if .Values.decisionToken.name -}}
{{- $_ := set $service "token_file" "/etc/steersman-decision/token" -}}
{{- end -}}
{{- $_ := set $over "service" $service -}}
{{- $scaling := dict -}}
{{- if include "steersman.scaler" . -}}
{{- $external := dict "listen" (printf "0.0.0.0:%v" .Values.scaling.port) -}}
{{- if .Values.scaling.tls.secretName -}}
{{- $tls := dict "certificate" "/etc/steersman-scaler/tls.crt" "key" "/etc/steersman-scaler/tls.key" -}}
{{- if .Values.scaling.tls.clientSecretName -}}{{- $_ := set $tls "client_ca" "/etc/steersman-scaler/ca.crt" -}}{{- end -}}
{{- $_ := set $external "tls" $tls -}}
{{- end -}}
{{- $_ := set $scaling "external_scaler" $external -}}
{{- end -}}
{{- if and .Values.scaling.enabled .Values.scaling.podDeletionCost -}}
{{- $_ := set $scaling "pod_deletion_cost" (dict "namespace" (include "steersman.replicasNamespace" .) "selector" .Values.agents.selector) -}}
{{- end -}}
{{- if $scaling -}}{{- $_ := set $over "scaling" $scaling -}}{{- end -}}
{{- if .Values.keySecret.name -}}
{{- $_ := set $over "identity" (dict "key_secret_file" "/etc/steersman/secrets/key-secret") -}}
{{- end -}}
{{ mergeOverwrite (deepCopy .Values.config) $over | toYaml }}
{{- end }}

{{/* Changes whenever what a pod reads at its start does. */}}
{{- define "steersman.configAnnotation" -}}
{{- if .Values.restartOnChange -}}
checksum/config: {{ include (print .Template.BasePath "/config.yaml") . | sha256sum }}
{{- end -}}
{{- end }}

{{/* service.drain_s, rounded up. */}}
{{- define "steersman.serviceDrain" -}}
{{- $service := .Values.config.service | default dict -}}
{{- if hasKey $service "drain_s" -}}{{ ceil $service.drain_s | int }}{{- else -}}10{{- end -}}
{{- end }}

{{/* Envoy's memory limit: its own heap bound (extproc/control/bootstrap.py) and a quarter of a GiB. */}}
{{- define "steersman.gatewayMemory" -}}
{{- $limits := .Values.config.limits | default dict -}}
{{- $gateway := .Values.config.gateway | default dict -}}
{{- $decisions := int64 ($limits.decisions_concurrent_max | default 512) -}}
{{- $body := int64 ($gateway.body_bytes_max | default 4194304) -}}
{{- printf "%dMi" (add 1024 256 (div (add (mul 2 $decisions $body) 1048575) 1048576)) -}}
{{- end }}

{{- define "steersman.probeArgs" -}}
{{- $gateway := .Values.config.gateway | default dict -}}
- python
- /opt/steersman/ask.py
{{- with .Values.probe.model }}
- --model
- {{ . | quote }}
{{- end }}
{{- if $gateway.tls }}
- --unverified
- https://127.0.0.1:8080
{{- else }}
- http://127.0.0.1:8080
{{- end }}
{{- end }}

{{/* Names that a shared Envoy knows its services by: a Service for each, whose address outlives the pod. */}}
{{- define "steersman.serviceNames" -}}
{{- $full := include "steersman.fullname" . -}}
{{- $names := list -}}
{{- range $i := until (int .Values.service.replicasMax) -}}
{{- $names = append $names (printf "%s-service-%d" $full $i) -}}
{{- end -}}
{{ join "," $names }}
{{- end }}

{{/* The port of service.ads_listen in the configuration, where Envoy is told of pools and endpoints apart from
     decisions; empty where it is not, or is a socket. */}}
{{- define "steersman.adsPort" -}}
{{- $service := .Values.config.service | default dict -}}
{{- with $service.ads_listen -}}{{- if not (hasPrefix "unix:" (first .)) -}}{{ last (splitList ":" (first .)) }}{{- end -}}{{- end -}}
{{- end }}

{{/* Where agents push. */}}
{{- define "steersman.agentTargets" -}}
{{- $full := include "steersman.fullname" . -}}
{{- $targets := list -}}
{{- if eq .Values.mode "shared" -}}
{{- range $i := until (int .Values.service.replicasMax) -}}
{{- $targets = append $targets (printf "%s-service-%d.%s.svc:50052" $full $i $.Release.Namespace) -}}
{{- end -}}
{{- else -}}
{{- $targets = append $targets (printf "%s-telemetry.%s.svc:50052" $full .Release.Namespace) -}}
{{- end -}}
{{ toYaml $targets }}
{{- end }}

{{/* The operators' socket of the service, where its container's `steersman` finds it. */}}
{{- define "steersman.ordersAddress" -}}
{{- $name := ternary "extproc" (ternary "0.0.0.0_50051" (printf "0.0.0.0_%v" .Values.picker.port) (eq .Values.mode "shared")) (eq .Values.mode "sidecar") -}}
unix:/var/lib/steersman/run/{{ $name }}.orders.sock
{{- end }}

{{/* Mistakes that a schema cannot tell. */}}
{{- define "steersman.checks" -}}
{{- if and (eq .Values.mode "sidecar") (not .Values.gateway.enabled) -}}
{{- fail "gateway.enabled false goes with mode shared: a sidecar has nothing to sit beside" -}}
{{- end -}}
{{- $sharing := .Values.config.sharing | default dict -}}
{{- $several := or (gt (int (ternary .Values.gateway.replicas .Values.service.replicas (eq .Values.mode "sidecar"))) 1) (and (eq .Values.mode "sidecar") .Values.gateway.autoscaling.enabled) (and (ne .Values.mode "sidecar") .Values.service.autoscaling.enabled) -}}
{{- if and $several (not $sharing.redis) (not .Values.allowUnshared) -}}
{{- fail "several services without config.sharing.redis: each would hold every quota alone. Name a Redis there, run one replica, or say allowUnshared: true" -}}
{{- end -}}
{{- if and (eq .Values.mode "shared") (gt (int .Values.service.replicas) (int .Values.service.replicasMax)) -}}
{{- fail "service.replicas is above service.replicasMax; Envoy knows only so many services" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (not .Values.metrics.tokenSha256) -}}
{{- fail "metrics.tokenSha256 is missing: the admin port is never open beyond the pod without a token. Make one with `steersman tenant key new`, or say metrics.enabled: false" -}}
{{- end -}}
{{- $gateway := .Values.config.gateway | default dict -}}
{{- if and .Values.probe.model (not .Values.probe.keySecret.name) (ne ($gateway.auth | default "api_key") "none") (ne .Values.mode "picker") -}}
{{- fail "probe.model needs probe.keySecret: /v1/models answers to tenants alone" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.tokenSecret.name) -}}
{{- fail "metrics.serviceMonitor needs metrics.tokenSecret: the Secret with the token whose hash is metrics.tokenSha256" -}}
{{- end -}}
{{- if and .Values.agents.enabled (eq .Values.agents.auth "token") (or (not .Values.agents.tokenSecret) (not .Values.agents.nodes)) -}}
{{- fail "agents.auth token needs agents.tokenSecret and agents.nodes" -}}
{{- end -}}
{{- if and .Values.agents.enabled (eq .Values.agents.auth "none") (not .Values.networkPolicy.enabled) -}}
{{- fail "agents.auth none is guarded by the NetworkPolicy alone; enable it, or use tokens" -}}
{{- end -}}
{{- if and (not (include "steersman.hasGateway" .)) .Values.networkPolicy.enabled (not .Values.networkPolicy.clients) -}}
{{- fail "networkPolicy.clients is missing: the gateways that ask the service. Its port gives decisions and endpoints, so that it is never open to everybody" -}}
{{- end -}}
{{- if and .Values.decisionToken.name (eq .Values.mode "picker") -}}
{{- fail "decisionToken goes with Envoys of this chart and of deploy/istio: a gateway that asks a picker has no way to show it; networkPolicy.clients is the guard there" -}}
{{- end -}}
{{- if and (.Values.config.service | default dict).tls (ne .Values.mode "sidecar") -}}
{{- fail "config.service.tls: the kubelet's gRPC probes do not speak TLS; use decisionToken, and a mesh or the cluster's network for encryption" -}}
{{- end -}}
{{- if .Values.scaling.enabled -}}
{{- if not .Values.scaling.targets -}}
{{- fail "scaling.targets is missing: which workload has the replicas of which pool, [{pool: NAME, name: DEPLOYMENT}]" -}}
{{- end -}}
{{- $scaled := dict -}}
{{- range .Values.config.pools -}}{{- if .scaling -}}{{- $_ := set $scaled .name .scaling -}}{{- end -}}{{- end -}}
{{- $places := dict -}}
{{- $seen := dict -}}
{{- range .Values.scaling.targets -}}
{{- if not (hasKey $scaled .pool) -}}
{{- fail (printf "scaling.targets names pool %s, and config.pools has no such pool with `scaling` (max_replicas and so on)" .pool) -}}
{{- end -}}
{{- if hasKey $seen .pool -}}
{{- fail (printf "scaling.targets names pool %s twice: what is wanted of a pool is one workload's replicas" .pool) -}}
{{- end -}}
{{- $_ := set $seen .pool true -}}
{{- $_ := set $places (.namespace | default $.Release.Namespace) true -}}
{{- if and (eq $.Values.scaling.mode "hpa") (lt (int (dig "min_replicas" 1 (get $scaled .pool))) 1) -}}
{{- fail (printf "scaling.mode hpa cannot start pool %s from zero; use keda-push, or min_replicas 1" .pool) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.scaling.podDeletionCost (gt (len $places) 1) -}}
{{- fail "scaling.podDeletionCost goes with targets of one namespace" -}}
{{- end -}}
{{- if and (eq .Values.scaling.mode "hpa") (not .Values.metrics.enabled) -}}
{{- fail "scaling.mode hpa needs metrics.enabled: prometheus-adapter gives HPA what Prometheus reads there" -}}
{{- end -}}
{{- if and .Values.scaling.tls.clientSecretName (not .Values.scaling.tls.secretName) -}}
{{- fail "scaling.tls.clientSecretName needs scaling.tls.secretName" -}}
{{- end -}}
{{- if and (include "steersman.scaler" .) .Values.networkPolicy.enabled (not .Values.scaling.peers) -}}
{{- fail "scaling.peers is missing: who may ask the external scaler (KEDA's operator)" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.mode "picker") .Values.picker.inferencePool.create (not .Values.picker.inferencePool.matchLabels) -}}
{{- fail "picker.inferencePool.matchLabels is missing: the labels of the replicas' pods" -}}
{{- end -}}
{{- end }}
