"""Alerts and their history in a file, so that a restart forgets neither."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future, wait
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from llmkg_otel._disk import sync
from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.alerting.alert_state import TIMES, ActiveAlert
from llmkg_otel.alerting.history import HistoryEntry

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MAX_ALERTS", "SavedAlert", "SavedState", "StateFile"]

FORMAT: Literal["llmkg_otel alert state"] = "llmkg_otel alert state"
VERSION: Literal[1] = 1
MAX_ALERTS = 1000
"""How many alerts are saved, the firing ones first: a storm of them must not make a file of gigabytes."""
LAST_TIME = 253_402_300_799.0
"""The last second of the year 9999."""
MAX_BYTES = 64 * 1024 * 1024
_logger = logging.getLogger(__name__)


def _check_times(*times: float | None) -> None:
    for time in times:
        if time is not None and not 0 <= time <= LAST_TIME:
            raise ValueError(f"{time!r} is no time in seconds since 1970")


class SavedAlert(BaseModel):
    """An alert, its rule's group, and its rule's expression (None: an older release saved it)."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    group: str
    alert: ActiveAlert
    expression: str | None = None

    @model_validator(mode="after")
    def _has_possible_times(self) -> Self:
        _check_times(*(getattr(self.alert, name) for name in TIMES))
        return self


class SavedState(BaseModel):
    """The file's content. Numbers that JSON has no word for are text."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    format: Literal["llmkg_otel alert state"] = FORMAT
    version: Literal[1] = VERSION
    saved_at: float
    alerts: tuple[SavedAlert, ...]
    history: tuple[HistoryEntry, ...]

    @model_validator(mode="after")
    def _has_possible_times(self) -> Self:
        _check_times(self.saved_at, *(entry.at for entry in self.history))
        return self


class StateFile:
    """Reads the state once and saves it again and again, on a daemon thread: a disk that hangs stops nobody.

    It is written under another name, to the disk, then renamed: it is whole or as it was before. One process
    a file: of two, the one that saved last would be remembered. Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._refused: Path | None = None
        self._read_problem: str | None = None
        self._write_problem: str | None = None
        self._lock = Lock()
        self._waiting: SavedState | None = None
        self._writing: Future[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why the state was not read or is not saved; a file that was moved aside counts until it is gone."""
        if self._write_problem is not None:
            return self._write_problem
        if self._refused is not None and not self._refused.exists():
            self._refused = self._read_problem = None
        return self._read_problem

    def read(self) -> SavedState | None:
        """Return what was saved, None when nothing was. A file that cannot be used is moved aside."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._read_problem = f"the alert state {self._path} cannot be read: {error}"
            _logger.warning("%s", self._read_problem)
            return None
        try:
            return _parsed(content)
        except ValueError as error:
            self._refuse(str(error))
            return None

    def _refuse(self, reason: str) -> None:
        aside = self._path.with_name(self._path.name + ".refused")
        try:
            self._path.replace(aside)
        except OSError as error:
            self._read_problem = f"the alert state {self._path} is not used ({reason}) and stays: {error}"
        else:
            self._refused = aside
            self._read_problem = f"the alert state {self._path} is not used and now {aside.name}: {reason}"
        _logger.warning("%s", self._read_problem)

    def save(self, state: SavedState) -> None:
        """Have it written soon, unless a newer one comes first. Returns at once."""
        with self._lock:
            self._waiting = state
            if self._writing is None:
                self._writing = in_daemon_thread(self._write_all, "llmkg-alert-state")

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until what was given is written, at most this long; say whether it is."""
        with self._lock:
            writing = self._writing
        return writing is None or not wait([writing], timeout_seconds).not_done

    def _write_all(self) -> None:
        while True:
            with self._lock:
                state, self._waiting = self._waiting, None
                if state is None:
                    self._writing = None
                    return
            self._write(state)

    def _write(self, state: SavedState) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(state.model_dump_json() + "\n", encoding="utf-8")
            sync(temporary)
            temporary.replace(self._path)
            sync(self._path.parent)
        except (OSError, ValueError) as error:  # ValueError: a label that is no Unicode
            if self._write_problem is None:
                _logger.warning("The alert state %s cannot be saved: %s", self._path, error)
            self._write_problem = f"the alert state {self._path} cannot be saved: {error}"
        else:
            self._write_problem = None


def _parsed(content: bytes) -> SavedState:
    """Return the state; raise ValueError that says what is wrong with the file."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is cut off or no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f'its "format" is not "{FORMAT}"')
    if found.get("version") != VERSION:
        raise ValueError(f"its version is {found.get('version')!r}, this release reads {VERSION}")
    try:
        return SavedState.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'times'}: {first['msg']}") from None
