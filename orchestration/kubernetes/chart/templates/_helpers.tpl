{{/* Facts and parts of objects that several templates have. */}}

{{- define "gpt2.ports" -}}
{exporter: 50051, tokenizer: 50052, trainer: 50053, registry: 50054}
{{- end }}

{{- define "gpt2.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: gpt2
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* An image by its name: (list . "gpt2-trainer"). */}}
{{- define "gpt2.image" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
{{- $image := $root.Values.image }}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $name }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- with index $image.digests $name }}@{{ . }}{{ end }}
{{- end }}

{{/* What the ConfigMap has, and pods are restarted for. */}}
{{- define "gpt2.config" -}}
{{- $config := dict "GPT2_KAFKA_BOOTSTRAP_SERVERS" .Values.kafka.bootstrapServers "GPT2_KAFKA_TOPIC" .Values.kafka.topic "GPT2_ARTIFACT_ROOT" "/data/artifacts" "GPT2_MLFLOW_TRACKING_URI" .Values.mlflow.trackingUri }}
{{- if .Values.s3.enabled }}
{{- $_ := set $config "GPT2_ARTIFACT_ROOT" .Values.s3.artifactRoot }}
{{- $_ := set $config "GPT2_SCRATCH_FOLDER" "/data/scratch" }}
{{- with .Values.s3.endpoint }}{{ $_ := set $config "AWS_ENDPOINT_URL" . }}{{ end }}
{{- $_ := set $config "AWS_DEFAULT_REGION" .Values.s3.region }}
{{- end }}
{{- if .Values.authentication.clients.enabled }}
{{- $_ := set $config "GPT2_CLIENTS_FILE" "/run/gpt2/clients" }}
{{- end }}
{{- toYaml (merge $config .Values.settings) }}
{{- end }}

{{- define "gpt2.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "gpt2.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Variables from a Secret: (list "NAME" "secret" "key"). */}}
{{- define "gpt2.fromSecret" -}}
- name: {{ index . 0 }}
  valueFrom: {secretKeyRef: {name: {{ index . 1 | quote }}, key: {{ index . 2 | quote }}}}
{{- end }}

{{- define "gpt2.addresses" -}}
{{- range $service, $port := include "gpt2.ports" . | fromYaml }}
- {name: GPT2_{{ upper $service }}_ADDRESS, value: "{{ $service }}:{{ $port }}"}
{{- end }}
{{- end }}

{{- define "gpt2.hasServiceAccount" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
{{- if or (and (eq $name "trainer") $root.Values.trainJobs.enabled) (index $root.Values.services $name).serviceAccount.annotations }}yes{{ end }}
{{- end }}

{{/* Ports of rules of NetworkPolicies. */}}
{{- define "gpt2.dnsRule" -}}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels: {k8s-app: kube-dns}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

{{- define "gpt2.kafkaPorts" -}}
{{- $ports := list }}
{{- range splitList "," .Values.kafka.bootstrapServers }}
{{- $ports = append $ports (regexReplaceAll "^.*:" (trim .) "" | int) }}
{{- end }}
{{- range uniq $ports }}
- {protocol: TCP, port: {{ . }}}
{{- end }}
{{- end }}

{{/* The port of a URL: (list "https://host/path"). */}}
{{- define "gpt2.urlPort" -}}
{{- $url := urlParse . }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- $port | default (eq $url.scheme "https" | ternary "443" "80") }}
{{- end }}

{{/* HTTPS outside (OpenAI's weights, S3), and an S3 store at another port. */}}
{{- define "gpt2.outsidePorts" -}}
- {protocol: TCP, port: 443}
{{- if and .Values.s3.enabled .Values.s3.endpoint }}
{{- $port := include "gpt2.urlPort" .Values.s3.endpoint }}
{{- if ne $port "443" }}
- {protocol: TCP, port: {{ $port }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Ports of MLflow, PostgreSQL, Kafka and MongoDB. */}}
{{- define "gpt2.storePorts" -}}
- {protocol: TCP, port: {{ include "gpt2.urlPort" .Values.mlflow.trackingUri }}}
- {protocol: TCP, port: {{ .Values.postgresql.port }}}
{{- include "gpt2.kafkaPorts" . }}
- {protocol: TCP, port: {{ .Values.mongodb.port }}}
{{- end }}

{{/* Settings of the trainer for TrainJobs. */}}
{{- define "gpt2.trainJobVariables" -}}
- {name: GPT2_TRAINING_BACKEND, value: trainjob}
- {name: GPT2_TRAINJOB_IMAGE, value: {{ include "gpt2.image" (list . "gpt2-trainer-gpu") | quote }}}
- {name: GPT2_TRAINJOB_RUNTIME, value: TrainingRuntime/gpt2-trainer}
- {name: GPT2_TRAINJOB_GPUS, value: {{ .Values.trainJobs.gpus | quote }}}
{{- with .Values.trainJobs.cpu }}
- {name: GPT2_TRAINJOB_CPU, value: {{ . | quote }}}
{{- end }}
- {name: GPT2_TRAINJOB_MEMORY, value: {{ .Values.trainJobs.memory | quote }}}
{{- if .Values.s3.enabled }}
{{- if eq .Values.storage.scratch.trainings.accessMode "ReadWriteOnce" }}
- {name: GPT2_TRAINJOB_MAX_NODES, value: "1"}
{{- end }}
{{- with .Values.s3.credentials }}
{{- if .secret }}
# The variables' values stay in the Secret.
- {name: GPT2_TRAINJOB_SECRETS, value: "AWS_ACCESS_KEY_ID={{ .secret }}/{{ .accessKey }},AWS_SECRET_ACCESS_KEY={{ .secret }}/{{ .secretKey }}"}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
