{{/* Name of everything the broker is made of. */}}
{{- define "sidegate.broker" -}}
{{- printf "%s-broker" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of everything the injector is made of, and of the webhook configurations that call it. */}}
{{- define "sidegate.injector" -}}
{{- printf "%s-injector" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The broker's host, as sidecars and databases call it. */}}
{{- define "sidegate.host" -}}
{{- printf "%s.%s.svc" (include "sidegate.broker" .) .Release.Namespace -}}
{{- end -}}

{{/* The issuer's URL: the audience of tokens for the broker. */}}
{{- define "sidegate.issuer" -}}
{{- .Values.issuerUrl | default (printf "https://%s:8444" (include "sidegate.host" .)) -}}
{{- end -}}

{{/* Labels of a component: dict "root" $ "component" "broker". */}}
{{- define "sidegate.labelsOf" -}}
{{ include "sidegate.selectorOf" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "sidegate.selectorOf" -}}
app.kubernetes.io/name: sidegate
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "sidegate.labels" -}}
{{ include "sidegate.labelsOf" (dict "root" . "component" "broker") }}
{{- end -}}

{{- define "sidegate.selector" -}}
{{ include "sidegate.selectorOf" (dict "root" . "component" "broker") }}
{{- end -}}

{{- define "sidegate.injector.labels" -}}
{{ include "sidegate.labelsOf" (dict "root" . "component" "injector") }}
{{- end -}}

{{- define "sidegate.injector.selector" -}}
{{ include "sidegate.selectorOf" (dict "root" . "component" "injector") }}
{{- end -}}

{{/* A repository, in the registry that stands for all others: dict "root" $ "repository" "ghcr.io/...". */}}
{{- define "sidegate.repository" -}}
{{- with .root.Values.imageRegistry -}}
{{- printf "%s/%s" . (regexReplaceAll "^[^/]*[.:][^/]*/" $.repository "") -}}
{{- else -}}
{{- .repository -}}
{{- end -}}
{{- end -}}

{{/* An image by digest, or by tag: dict "root" $ "image" .Values.image. */}}
{{- define "sidegate.image" -}}
{{- $repository := include "sidegate.repository" (dict "root" .root "repository" .image.repository) -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The security context of a pod of ours; OpenShift chooses users by itself and refuses fixed ones. */}}
{{- define "sidegate.podSecurity" -}}
runAsNonRoot: true
{{- if not .Values.openshift }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
{{- /* Once a volume is the group's it is not opened to it at every mount again: what the broker keeps there is its own. */}}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* How the API server calls a path: by the Service, or by a URL. No caBundle: that field belongs to whoever renews the certificate. dict "root" $ "path" "/mutate" */}}
{{- define "sidegate.call" -}}
{{- with .root.Values.injector -}}
{{- if .url -}}
url: {{ .url }}{{ $.path }}
{{- else -}}
service:
  namespace: {{ $.root.Release.Namespace }}
  name: {{ include "sidegate.injector" $.root }}
  path: {{ $.path }}
  port: {{ int64 .service.port }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Brokers' users, as a list of CEL: this release's, and those of other releases that live under its policies. */}}
{{- define "sidegate.brokers" -}}
{{- $users := list (printf "'system:serviceaccount:%s:%s'" .Release.Namespace .Values.serviceAccount.name) -}}
{{- range .Values.approvals.otherBrokers -}}
{{- $users = append $users (printf "'system:serviceaccount:%s:%s'" .namespace .name) -}}
{{- end -}}
[{{ join ", " $users }}]
{{- end -}}

{{/* Namespaces whose pods are asked about. */}}
{{- define "sidegate.namespaces" -}}
- {key: sidegate.dev/inject, operator: In, values: [enabled]}
{{- with .Values.injector.revision }}
- {key: sidegate.dev/rev, operator: In, values: [{{ . | quote }}]}
{{- else }}
- {key: sidegate.dev/rev, operator: DoesNotExist}
{{- end }}
# A cluster that cannot make its own pods does not come back: these are never ours, whatever their labels say.
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: [kube-system, kube-public, kube-node-lease, {{ .Release.Namespace }}]
{{- end -}}

{{/* Annotations of what `helm test` makes, and removes whatever came of it: dict "weight" 1. */}}
{{- define "sidegate.test" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}
