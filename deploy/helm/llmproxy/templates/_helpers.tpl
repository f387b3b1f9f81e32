{{- define "llmproxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "llmproxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "llmproxy.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "llmproxy.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.selector" -}}
app.kubernetes.io/name: {{ include "llmproxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "llmproxy.labels" -}}
{{ include "llmproxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "llmproxy.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "llmproxy.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The port of the metrics' own listener; nothing where they are on that of the clients. */}}
{{- define "llmproxy.metricsPort" -}}
{{- $metrics := default dict .Values.config.metrics -}}
{{- if and $metrics.listen (ne (toString $metrics.enabled) "false") -}}
{{- regexFind "[0-9]+$" (toString $metrics.listen) -}}
{{- end -}}
{{- end -}}

{{/* What somebody wrote, and over it what has to fit the pod. */}}
{{- define "llmproxy.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $server := merge (dict
      "listen" ":8000"
      "watch_config" true
      "shutdown_delay" (printf "%ds" (int .Values.drain.delaySeconds))
      "drain_timeout" (printf "%ds" (int .Values.drain.timeoutSeconds))
    ) (default dict $config.server) -}}
{{- $_ := set $config "server" $server -}}
{{- $counters := merge (dict "dir" "/run/llmproxy/counters") (default dict $config.counters) -}}
{{- $_ := set $config "counters" $counters -}}
{{- if hasKey $config "usage" -}}
{{- $folders := dict "dir" "/var/lib/llmproxy/spool" "ring_dir" "/run/llmproxy" -}}
{{- $spool := merge $folders (default dict $config.usage.spool) -}}
{{- $_ := set $config.usage "spool" $spool -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}
