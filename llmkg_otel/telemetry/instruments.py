"""The instruments that are written to, made from the contract on one meter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.semconv import DURATION_BUCKETS, Instrument

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter

__all__ = ["Instruments", "counter", "histogram"]


def histogram(meter: Meter, instrument: Instrument) -> Histogram:
    """Create a duration histogram with the contract's buckets as advice."""
    return meter.create_histogram(
        instrument.name,
        unit=instrument.unit,
        description=instrument.description,
        explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
    )


def counter(meter: Meter, instrument: Instrument) -> Counter:
    """Create a counter."""
    return meter.create_counter(instrument.name, unit=instrument.unit, description=instrument.description)


class Instruments:
    """One per system; each name has one writer. What is read at collection is in `live`."""

    def __init__(self, meter: Meter) -> None:
        self.operation_duration = histogram(meter, semconv.OPERATION_DURATION)
        self.attempt_duration = histogram(meter, semconv.ATTEMPT_DURATION)
        self.breaker_transitions = counter(meter, semconv.BREAKER_TRANSITIONS)
        self.retry_attempts = counter(meter, semconv.RETRY_ATTEMPTS)
        self.retry_delay = histogram(meter, semconv.RETRY_DELAY)
        self.permit_wait_time = histogram(meter, semconv.PERMIT_WAIT_TIME)
        self.connection_timeouts = counter(meter, semconv.CONNECTION_TIMEOUTS)
        self.connection_create_time = histogram(meter, semconv.CONNECTION_CREATE_TIME)
        self.connection_wait_time = histogram(meter, semconv.CONNECTION_WAIT_TIME)
        self.connection_use_time = histogram(meter, semconv.CONNECTION_USE_TIME)
        self.health_check_duration = histogram(meter, semconv.HEALTH_CHECK_DURATION)
        self.shutdown_phase_duration = histogram(meter, semconv.SHUTDOWN_PHASE_DURATION)
        self.shutdown_operations = counter(meter, semconv.SHUTDOWN_OPERATIONS)
        self.alert_evaluation_duration = histogram(meter, semconv.ALERT_EVALUATION_DURATION)
        self.alert_notifications = counter(meter, semconv.ALERT_NOTIFICATIONS)
        self.hook_errors = counter(meter, semconv.HOOK_ERRORS)
