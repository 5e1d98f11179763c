"""Progress while the load runs: a table on a terminal, a line a second, while it changes, anywhere else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families
from rich.live import Live
from rich.table import Table

from llmkg_otel.demo.process import fetch
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from rich.console import Console

    from llmkg_otel.demo.clients import Journal

__all__ = ["LiveView", "breaker_states"]

_EVERY_SECONDS = 1.0


class LiveView:
    """Shows what the clients noted and what /metrics says of the breakers, once a second.

    `phase` is what the demo is doing now; whoever drives it sets it.
    """

    def __init__(self, console: Console, journal: Journal, ops_url: str) -> None:
        self.phase = "starting"
        self._console = console
        self._journal = journal
        self._ops_url = ops_url
        self._breakers: dict[str, str] = {}
        self._rate = 0.0

    async def watch(self) -> None:
        """Show until cancelled."""
        with contextlib.ExitStack() as stack:
            live, shown = None, ""
            if self._console.is_terminal:
                live = stack.enter_context(Live(console=self._console, auto_refresh=False, transient=True))
            while True:
                before = len(self._journal.calls)
                await asyncio.sleep(_EVERY_SECONDS)
                self._rate = (len(self._journal.calls) - before) / _EVERY_SECONDS
                self._breakers = breaker_states(await fetch(f"{self._ops_url}/metrics") or "")
                if live is not None:
                    live.update(self._table(), refresh=True)
                elif (line := self._line()) != shown:
                    self._console.print(line, highlight=False, soft_wrap=True)
                    shown = line

    def _table(self) -> Table:
        table = Table(title=self.phase, show_header=False)
        table.add_row("calls", f"{len(self._journal.calls):,}")
        table.add_row("calls/s", f"{self._rate:.0f}")
        for outcome, count in self._journal.outcomes.most_common():
            table.add_row(f"  {outcome}", f"{count:,}")
        table.add_row("breakers", self._open_breakers())
        return table

    def _line(self) -> str:
        outcomes = " ".join(f"{name}={count}" for name, count in self._journal.outcomes.most_common())
        return f"{self.phase}: {self._rate:.0f} calls/s; {outcomes}; breakers: {self._open_breakers()}"

    def _open_breakers(self) -> str:
        states = sorted(self._breakers.items())
        if not states:
            return "unknown"
        return ", ".join(f"{name} {state}" for name, state in states if state != "closed") or "all closed"


def breaker_states(exposition: str) -> dict[str, str]:
    """Return each breaker's state by name, from the Prometheus text of /metrics."""
    wanted = semconv.BREAKER_STATUS.name.replace(".", "_")
    return {
        sample.labels["name"]: sample.labels["state"]
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == wanted and sample.value == 1
    }
