"""The only room that knows OpenTelemetry: names, instruments, events into signals, providers, logs."""
