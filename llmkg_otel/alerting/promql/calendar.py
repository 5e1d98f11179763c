"""Time and date functions: UTC, in Go's proleptic Gregorian calendar, for any 64-bit second.

Source: Prometheus 3.5 `promql/functions.go`, dateWrapper; Go's `time`, whose seconds since its own zero
year are 64 bits and wrap. Days to dates: Howard Hinnant's civil_from_days.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CALENDAR", "seconds_of"]

_GO_ZERO = 292277022400 * 31556952 - 62167219200  # seconds from Go's absolute zero year to 1970
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


class _Date(NamedTuple):
    year: int
    month: int
    day: int


def seconds_of(value: float) -> int:
    """Return the whole seconds of a float as Go converts it on amd64: the least int64 if they do not fit."""
    if math.isnan(value) or not -(2.0**63) <= value < 2.0**63:
        return -(2**63)
    return int(value)


def _wrapped(seconds: int) -> int:
    return (seconds + _GO_ZERO) % 2**64 - _GO_ZERO


def _date(seconds: int) -> _Date:
    days = _wrapped(seconds) // 86400 + 719468  # since 0000-03-01
    era, day_of_era = divmod(days, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return _Date(year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days_in_month(seconds: int) -> int:
    date = _date(seconds)
    if date.month == 2:
        return 29 if _is_leap(date.year) else 28
    return 30 if date.month in (4, 6, 9, 11) else 31


def _day_of_year(seconds: int) -> int:
    date = _date(seconds)
    return _DAYS_BEFORE[date.month - 1] + date.day + (date.month > 2 and _is_leap(date.year))


CALENDAR: dict[str, Callable[[int], int]] = {
    "day_of_month": lambda seconds: _date(seconds).day,
    "day_of_week": lambda seconds: (_wrapped(seconds) // 86400 + 4) % 7,
    "day_of_year": _day_of_year,
    "days_in_month": _days_in_month,
    "hour": lambda seconds: _wrapped(seconds) % 86400 // 3600,
    "minute": lambda seconds: _wrapped(seconds) % 3600 // 60,
    "month": lambda seconds: _date(seconds).month,
    "year": lambda seconds: _date(seconds).year,
}
"""Each from seconds since the epoch."""
