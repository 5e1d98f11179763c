"""What a dashboard is here: plain frozen data, from which `render` makes Grafana's JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Board", "Panel", "Query", "Row"]

Kind = Literal["graph", "stat", "states", "table", "heatmap"]


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` names its series, with `{{label}}` for a label's value.

    `exemplars` asks for those of its histogram too: a dot in the graph leads to a trace.
    `quiet` says why it finds nothing when all is well; "" means that it must find something.
    """

    expr: str
    legend: str = ""
    exemplars: bool = False
    quiet: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is Grafana's id of a unit, `width` in columns of 24.

    `thresholds` are (from this value on, colour), the first from None; without any, nothing is coloured.
    `states` are the attribute's values of a state timeline, in the order that its query counts them from 0.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "graph"
    width: int = 8
    stacked: bool = False
    thresholds: tuple[tuple[float | None, str], ...] = ()
    states: tuple[str, ...] = ()
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and the panels below it, from left to right in lines of 24 columns."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard; `uid` is its address in Grafana and the name of its file."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    by_operation: bool = True
    with_objective: bool = False

    def panels(self) -> tuple[Panel, ...]:
        """Return the panels of all rows."""
        return tuple(panel for row in self.rows for panel in row.panels)
