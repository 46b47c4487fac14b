{{/*
What the admission policies have in common. `sidegate-admission` is written by the broker's leader
(broker/src/kubernetes/admission.rs): what a sidecar must show, and what each InjectionProfile relaxes. A profile that is
not in it yet relaxes nothing.
*/}}

{{/* Whether the policies are installed. */}}
{{- define "sidegate.policies" -}}
{{- if .Values.admissionPolicies.create }}yes{{ end -}}
{{- end -}}

{{/* Those that hold in every namespace: a release with a revision leaves them to the one without. */}}
{{- define "sidegate.policies.everywhere" -}}
{{- if and .Values.admissionPolicies.create (not .Values.injector.revision) }}yes{{ end -}}
{{- end -}}

{{- define "sidegate.params" -}}
paramKind: {apiVersion: v1, kind: ConfigMap}
{{- end -}}

{{/* The bindings of a policy: (dict "root" $ "name" "pods" "params" true). It denies, and only warns where the namespace says audit. */}}
{{- define "sidegate.bindings" -}}
{{- $root := .root -}}
{{- $name := .name -}}
{{- $params := .params -}}
{{- range $mode, $how := dict "enforce" (dict "operator" "NotIn" "actions" "[Deny, Audit]") "audit" (dict "operator" "In" "actions" "[Warn, Audit]") }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $root.Release.Name }}-{{ $name }}-{{ $mode }}
  labels: {{- include "sidegate.labels" $root | nindent 4 }}
spec:
  policyName: {{ $root.Release.Name }}-{{ $name }}
  validationActions: {{ $how.actions }}
  {{- if $params }}
  paramRef: {name: sidegate-admission, namespace: {{ $root.Release.Namespace }}, parameterNotFoundAction: Deny}
  {{- end }}
  matchResources:
    namespaceSelector:
      matchExpressions:
        {{- include "sidegate.namespaces" $root | nindent 8 }}
        - {key: sidegate.dev/admission, operator: {{ $how.operator }}, values: [audit]}
{{- end }}
{{- end -}}

{{/* Lines of the namespace's profile, such as `privileged Warn`; containers it exempts: `exempt NAME IMAGE-PREFIX`; users its
fence lets through: `allowUid NUMBER`. */}}
{{- define "sidegate.variables" -}}
- name: data
  expression: "params.?data.orValue({})"
- name: labels
  expression: "namespaceObject.metadata.?labels.orValue({})"
- name: profileName
  expression: "variables.labels[?'sidegate.dev/profile'].orValue('default')"
- name: profile
  expression: "variables.data[?('profile.' + variables.profileName)].orValue('').split('\\n')"
- name: enforced
  expression: "'tier Enforced' in variables.profile"
- name: allowed
  expression: "variables.profile.filter(line, line.startsWith('allowUid ')).map(line, line.substring(9))"
{{- end -}}

{{/* The containers of a list (a CEL expression) that are proxies: by name, and by what their image begins with. */}}
{{- define "sidegate.proxies" -}}
{{- $istio := "['docker.io/istio/', 'gcr.io/istio-release/', 'registry.istio.io/']" -}}
{{- $linkerd := "['cr.l5d.io/linkerd/', 'ghcr.io/linkerd/']" -}}
{{- $vault := "['docker.io/hashicorp/vault', 'hashicorp/vault']" -}}
({{ . }}).filter(c, {
  'istio-init': {{ $istio }}, 'istio-validation': {{ $istio }}, 'istio-proxy': {{ $istio }},
  'linkerd-init': {{ $linkerd }}, 'linkerd-network-validator': {{ $linkerd }}, 'linkerd-proxy': {{ $linkerd }},
  'daprd': ['docker.io/daprio/', 'ghcr.io/dapr/'],
  'vault-agent': {{ $vault }}, 'vault-agent-init': {{ $vault }}
}[?c.name].orValue([]).exists(prefix, c.?image.orValue('').startsWith(prefix))).map(c, c.name)
{{- end -}}

{{/* The same of those that the profile exempts. */}}
{{- define "sidegate.exempt" -}}
({{ . }}).filter(c, variables.profile.exists(line,
  line.startsWith('exempt ' + c.name + ' ') &&
  c.?image.orValue('').startsWith(line.substring(8 + c.name.size())))).map(c, c.name)
{{- end -}}

{{/* Names of the containers of a list that add a capability which reaches into others. */}}
{{- define "sidegate.capable" -}}
({{ . }}).filter(c, c.?securityContext.?capabilities.?add.orValue([]).exists(one,
  one.upperAscii() in ['ALL', 'SYS_PTRACE', 'SYS_ADMIN', 'BPF', 'CAP_ALL', 'CAP_SYS_PTRACE', 'CAP_SYS_ADMIN', 'CAP_BPF'] ||
  one.upperAscii() in ['NET_ADMIN', 'NET_RAW', 'CAP_NET_ADMIN', 'CAP_NET_RAW'] && !(c.name in variables.exempt))).map(c, c.name)
{{- end -}}

{{/* Names of the containers of a list that keep NET_RAW, which many runtimes grant. */}}
{{- define "sidegate.raw" -}}
({{ . }}).filter(c,
  !c.?securityContext.?capabilities.?drop.orValue([]).exists(one, one.upperAscii() in ['ALL', 'NET_RAW', 'CAP_ALL', 'CAP_NET_RAW']) &&
  !c.?securityContext.?capabilities.?add.orValue([]).exists(one, one.upperAscii() in ['ALL', 'NET_RAW', 'CAP_ALL', 'CAP_NET_RAW'])).map(c, c.name)
{{- end -}}

{{/* Names of the containers of a list that mount a volume of ours, or use it as a device. */}}
{{- define "sidegate.reaching" -}}
({{ . }}).filter(c,
  c.?volumeMounts.orValue([]).exists(mount, mount.name.startsWith('sidegate-')) ||
  c.?volumeDevices.orValue([]).exists(device, device.name.startsWith('sidegate-'))).map(c, c.name)
{{- end -}}

{{/* Names of the containers of a list whose user a fence cannot tell from others: none is named, or root, whom the fence tries itself
as, or whom it lets through. */}}
{{- define "sidegate.fence.users" -}}
({{ . }}).filter(c, [c.?securityContext.?runAsUser.orValue(object.spec.?securityContext.?runAsUser.orValue(0))].exists(user,
  user <= 0 || user == 65533 || string(user) in variables.allowed)).map(c, c.name)
{{- end -}}

{{/* Names of the containers of a list that could become another user, or take a fence down. */}}
{{- define "sidegate.fence.rights" -}}
({{ . }}).filter(c, c.?securityContext.?privileged.orValue(false) || c.?securityContext.?allowPrivilegeEscalation.orValue(true) ||
  c.?securityContext.?capabilities.?add.orValue([]).map(one, one.upperAscii()).exists(one, [
  'ALL', 'SYS_PTRACE', 'SYS_ADMIN', 'BPF', 'NET_ADMIN', 'NET_RAW', 'SETGID', 'SETUID'].exists(word, one == word || one == 'CAP_' + word)) ||
  !c.?securityContext.?capabilities.?drop.orValue([]).map(one, one.upperAscii()).exists(one, one == 'ALL' || one == 'CAP_ALL') &&
  !['NET_ADMIN', 'NET_RAW', 'SETGID', 'SETUID', 'SYS_PTRACE'].all(word,
  c.?securityContext.?capabilities.?drop.orValue([]).map(one, one.upperAscii()).exists(one, one == word || one == 'CAP_' + word))).map(c, c.name)
{{- end -}}
