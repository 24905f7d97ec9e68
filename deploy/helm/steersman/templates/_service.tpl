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
{{- $ports := list }}
{{- if .grpcPort }}{{ $ports = append $ports (dict "name" "grpc" "containerPort" .grpcPort) }}{{ end }}
{{- if .Values.agents.enabled }}{{ $ports = append $ports (dict "name" "telemetry" "containerPort" 50052) }}{{ end }}
{{- if .Values.metrics.enabled }}{{ $ports = append $ports (dict "name" "metrics" "containerPort" (int .Values.metrics.port)) }}{{ end }}
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
