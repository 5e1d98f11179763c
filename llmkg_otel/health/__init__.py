"""Health checks, their schedule, the report, and the probes that read it."""
