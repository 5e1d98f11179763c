"""Admission: rate limits, permits and resource limits. A refusal never reaches the engine."""
