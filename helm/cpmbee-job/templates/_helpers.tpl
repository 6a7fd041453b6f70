{{- define "cpmbee-job.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Labels that do not change between versions, to select pods. */}}
{{- define "cpmbee-job.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Active runs need the object: neither an upgrade nor an uninstall deletes it. */}}
{{- define "cpmbee-job.kept" -}}
helm.sh/resource-policy: keep
{{- end -}}

{{/* "<release>-<name>" in at most `most` characters; long names end with a digest, to stay distinct. */}}
{{- define "cpmbee-job.name" -}}
{{- $name := printf "%s-%s" .root.Release.Name .name -}}
{{- if gt (len $name) (int .most) -}}
{{- $name = printf "%s-%s" ($name | trunc (int (sub .most 9)) | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "cpmbee-job.secretName" -}}{{ .Release.Name }}-s3-credentials{{- end -}}

{{- define "cpmbee-job.hasSecret" -}}
{{- if or .Values.secret.accessKeyId .Values.secret.secretAccessKey -}}
{{- if not (and .Values.secret.accessKeyId .Values.secret.secretAccessKey) -}}
{{- fail "secret: requires both accessKeyId and secretAccessKey" -}}
{{- end -}}
yes
{{- end -}}
{{- end -}}

{{/* Defaults of all specs: the object store that the chart itself installs, and `defaults`. */}}
{{- define "cpmbee-job.defaults" -}}
{{- $storage := dict -}}
{{- if .Values.s3.enabled -}}
{{- $_ := set $storage "endpoint_url" (printf "http://%s-s3.%s.svc:8333" .Release.Name .Release.Namespace) -}}
{{- end -}}
{{- if include "cpmbee-job.hasSecret" . -}}
{{- $_ := set $storage "secret" (include "cpmbee-job.secretName" .) -}}
{{- end -}}
{{- if .Values.caBundle -}}
{{- $_ := set $storage "ca_config_map" (printf "%s-ca" .Release.Name) -}}
{{- end -}}
{{- if .Values.trainServiceAccount.create -}}
{{- $_ := set $storage "service_account" (printf "%s-train" .Release.Name) -}}
{{- end -}}
{{- $ours := dict -}}
{{- if $storage }}{{ $_ := set $ours "storage" $storage }}{{ end -}}
{{- toYaml (mustMergeOverwrite $ours (deepCopy .Values.defaults)) -}}
{{- end -}}

{{/* The complete job spec of the job `name`. */}}
{{- define "cpmbee-job.spec" -}}
{{- $own := .job.spec -}}
{{- if kindIs "string" $own -}}
{{- $own = fromYaml $own -}}
{{- if $own.Error }}{{ fail (printf "jobs.%s.spec: not valid YAML: %s" .name $own.Error) }}{{ end -}}
{{- end -}}
{{- $spec := mustMergeOverwrite (include "cpmbee-job.defaults" .root | fromYaml) (deepCopy $own) -}}
{{- if not $spec.name }}{{ $_ := set $spec "name" .name }}{{ end -}}
{{- $namespace := dig "cluster" "namespace" "" $spec -}}
{{- if and $namespace (ne $namespace .root.Release.Namespace) -}}
{{- fail (printf "jobs.%s: cluster.namespace is %s, but the release is in %s: install a release in that namespace" .name $namespace .root.Release.Namespace) -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end -}}

{{/* The spec that `helm test` trains with: the defaults. If they have no image or output, image, output, storage and cluster
of a job; empty if no job has them either. */}}
{{- define "cpmbee-job.testSpec" -}}
{{- $spec := include "cpmbee-job.defaults" . | fromYaml -}}
{{- range $name, $job := .Values.jobs -}}
{{- if not (and $spec.image $spec.output) -}}
{{- $own := include "cpmbee-job.spec" (dict "root" $ "name" $name "job" $job) | fromYaml -}}
{{- $spec = pick $own "image" "output" "storage" "cluster" -}}
{{- end -}}
{{- end -}}
{{- if and $spec.image $spec.output }}{{ toYaml $spec }}{{ end -}}
{{- end -}}

{{/* A list of the defaults and all specs. */}}
{{- define "cpmbee-job.specs" -}}
{{- $specs := list (include "cpmbee-job.defaults" . | fromYaml) -}}
{{- range $name, $job := .Values.jobs -}}
{{- $specs = append $specs (include "cpmbee-job.spec" (dict "root" $ "name" $name "job" $job) | fromYaml) -}}
{{- end -}}
{{- toYaml $specs -}}
{{- end -}}
