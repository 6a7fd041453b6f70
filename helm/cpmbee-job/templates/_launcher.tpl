{{/* Metadata and spec of a pod that runs the launcher. `args`: its arguments; `spec`: the job spec, `config`: the ConfigMap
that it is in; `container`: its name. */}}
{{- define "cpmbee-job.launcherPod" -}}
metadata:
  labels:
    {{- include "cpmbee-job.selector" .root | nindent 4 }}
    app.kubernetes.io/component: launcher
  annotations:
    sidecar.istio.io/inject: "false"
spec:
  {{- include "cpmbee-job.podSpec" (dict "root" .root "spec" .spec) | nindent 2 }}
  containers:
    - {{- include "cpmbee-job.container" . | nindent 6 }}
  volumes:
    {{- include "cpmbee-job.volumes" . | nindent 4 }}
{{- end -}}

{{- define "cpmbee-job.podSpec" -}}
restartPolicy: Never
serviceAccountName: {{ .root.Release.Name }}-launcher
enableServiceLinks: false
{{- include "cpmbee-job.podSecurity" . | nindent 0 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.launcher.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.launcher.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "cpmbee-job.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "cpmbee-job.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* The launcher reaches the object store like the pods of its job: same address, credentials and certificates. */}}
{{- define "cpmbee-job.container" -}}
{{- $storage := .spec.storage | default dict -}}
name: {{ .container | default "launcher" }}
image: {{ printf "%s:%s" .root.Values.image.repository (.root.Values.image.tag | default .root.Chart.AppVersion) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: {{- toYaml .args | nindent 2 }}
env:
  - {name: CPMBEE_IN_CLUSTER, value: "1"}
  - name: JOB_NAME
    valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
  {{- with $storage.secret }}
  - name: AWS_ACCESS_KEY_ID
    valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
  - name: AWS_SECRET_ACCESS_KEY
    valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
  - name: AWS_SESSION_TOKEN
    valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SESSION_TOKEN, optional: true}}
  {{- end }}
  {{- if $storage.ca_config_map }}
  - {name: AWS_CA_BUNDLE, value: /etc/cpmbee-job/ca/ca.crt}
  {{- end }}
  {{- range $name, $value := .root.Values.launcher.env }}
  - {name: {{ $name | quote }}, value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}}
  {{- end }}
resources: {{- toYaml .root.Values.launcher.resources | nindent 2 }}
{{ include "cpmbee-job.security" . }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: spec, mountPath: /etc/cpmbee-job/spec, readOnly: true}
  {{- if $storage.ca_config_map }}
  - {name: ca, mountPath: /etc/cpmbee-job/ca, readOnly: true}
  {{- end }}
{{- end -}}

{{- define "cpmbee-job.volumes" -}}
{{- $storage := .spec.storage | default dict -}}
- {name: tmp, emptyDir: {}}
- {name: spec, configMap: {name: {{ .config }}}}
{{- with $storage.ca_config_map }}
- {name: ca, configMap: {name: {{ . }}}}
{{- end }}
{{- end -}}
