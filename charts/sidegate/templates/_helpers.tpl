{{/* Name of everything the broker is made of. */}}
{{- define "sidegate.broker" -}}
{{- printf "%s-broker" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The broker's host, as sidecars and databases call it. */}}
{{- define "sidegate.host" -}}
{{- printf "%s.%s.svc" (include "sidegate.broker" .) .Release.Namespace -}}
{{- end -}}

{{/* The issuer's URL: the audience of tokens for the broker. */}}
{{- define "sidegate.issuer" -}}
{{- .Values.issuerUrl | default (printf "https://%s:8444" (include "sidegate.host" .)) -}}
{{- end -}}

{{- define "sidegate.labels" -}}
app.kubernetes.io/name: sidegate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: broker
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "sidegate.selector" -}}
app.kubernetes.io/name: sidegate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: broker
{{- end -}}
