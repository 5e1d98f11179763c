#!/bin/sh
# Print the default alert rules as a PrometheusRule: deploy/kubernetes/rules.sh | kubectl apply -f -
cat <<'HEAD'
# From llmkg_otel/alerting/default_rules.yaml. Needs the Prometheus Operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: llmkg
  labels: {app.kubernetes.io/name: llmkg}
spec:
HEAD
sed 's/^./  &/' "$(dirname "$0")/../../llmkg_otel/alerting/default_rules.yaml"
