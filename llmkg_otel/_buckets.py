"""The bounds of every duration histogram: what is recorded with, and what an objective can be held to."""

from __future__ import annotations

__all__ = ["DURATION_BUCKETS"]

DURATION_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Bounds in seconds, given to the SDK as advice so that a user's View still wins."""
