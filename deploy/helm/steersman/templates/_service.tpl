{{/* The deciding service's container, but for its name's place: what it reads, writes and listens on. */}}
{{- define "steersman.serviceContainer" -}}
name: steersman
image: {{ include "steersman.image" .Values.images.service | quote }}
imagePullPolicy: {{ .Values.images.service.pullPolicy }}
args: [serve, -f, {{ .file | quote }}]
env:
  - {name: STEERSMAN_ADDRESS, value: {{ include "steersman.ordersAddress" . | quote }}}
  {{- if eq .Values.mode "shared" }}
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- end }}
  {{- if .Values.scaling.enabled }}
  # The namespace label of the gauges wva_*.
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  {{- end }}
{{- $ports := list }}
{{- if .grpcPort }}{{ $ports = append $ports (dict "name" "grpc" "containerPort" .grpcPort) }}{{ end }}
{{- if .grpcPort }}{{ with include "steersman.adsPort" . }}{{ $ports = append $ports (dict "name" "ads" "containerPort" (int .)) }}{{ end }}{{ end }}
{{- if .Values.agents.enabled }}{{ $ports = append $ports (dict "name" "telemetry" "containerPort" 50052) }}{{ end }}
{{- if .Values.metrics.enabled }}{{ $ports = append $ports (dict "name" "metrics" "containerPort" (int .Values.metrics.port)) }}{{ end }}
{{- if include "steersman.scaler" . }}{{ $ports = append $ports (dict "name" "scaler" "containerPort" (int .Values.scaling.port)) }}{{ end }}
{{- with $ports }}
ports: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "steersman.containerSecurity" . | nindent 2 }}
resources: {{- toYaml .Values.service.resources | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/steersman, readOnly: true}
  {{- if .Values.keySecret.name }}
  - {name: key-secret, mountPath: /etc/steersman/secrets, readOnly: true}
  {{- end }}
  {{- if .Values.decisionToken.name }}
  - {name: decision-token, mountPath: /etc/steersman-decision, readOnly: true}
  {{- end }}
  {{- if .Values.scaling.tls.secretName }}
  - {name: scaler-tls, mountPath: /etc/steersman-scaler, readOnly: true}
  {{- end }}
  {{- if and .Values.scaling.enabled .Values.scaling.podDeletionCost }}
  - {name: api, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  {{- end }}
  - {name: run, mountPath: /run/steersman}
  - {name: data, mountPath: /var/lib/steersman}
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* A pod's volumes; with `service` those of the service, too. */}}
{{- define "steersman.volumes" -}}
- name: config
  secret: {secretName: {{ .Values.existingSecret | default (printf "%s-config" (include "steersman.fullname" .)) }}, defaultMode: 0440}
{{- with .Values.keySecret }}
{{- if and .name $.service }}
- name: key-secret
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: key-secret}]}
{{- end }}
{{- end }}
{{- with .Values.decisionToken }}
{{- if .name }}
- name: decision-token
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: token}]}
{{- end }}
{{- end }}
- {name: run, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
{{- if .service }}
{{- if .Values.scaling.tls.secretName }}
- name: scaler-tls
  secret: {secretName: {{ .Values.scaling.tls.secretName }}, defaultMode: 0440}
{{- end }}
{{- if and .Values.scaling.enabled .Values.scaling.podDeletionCost }}
# The API's token for the service's container, and for no other: it may list and patch the replicas' pods.
- name: api
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
- {name: data, emptyDir: {sizeLimit: 1Gi}}
{{- end }}
- {name: tmp, emptyDir: {sizeLimit: 64Mi}}
{{- end }}

{{/* Where pods are put: given places, spread over nodes. */}}
{{- define "steersman.placing" -}}
{{- with .part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "steersman.selector" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
{{- end }}
