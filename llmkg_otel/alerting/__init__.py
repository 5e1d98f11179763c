"""Alert rules in Prometheus' rule-file format, evaluated on the metrics that OpenTelemetry collects."""
