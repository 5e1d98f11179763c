"""Grafana's JSON from the data of `model`, by grafana-foundation-sdk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from llmkg_otel.dashboards.promql import select
from llmkg_otel.dashboards.variables import variables
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from llmkg_otel.dashboards.model import Board, Panel, Query

__all__ = ["render"]

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
HEIGHTS = {"stat": 4, "graph": 8, "states": 8, "table": 8, "heatmap": 8}

GREEN, AMBER, RED, BLUE, GREY = "green", "orange", "red", "blue", "#808080"
COLOURS = {
    GREEN: ("closed", "primary", "pass", "ok", "serving", "inactive", "improving"),
    AMBER: (
        "half_open",
        "fallback",
        "slow",
        "warn",
        "pending",
        "degrading",
        "draining",
        "lame_duck",
        "checkpointing",
    ),
    RED: ("open", "forced_open", "unavailable", "fail", "failing", "firing", "flapping", "stopped"),
    BLUE: ("starting", "stable", "cleaning_up", "flushing"),
    GREY: ("disabled", "unknown"),
}
"""What colour a state of the contract has wherever it is shown."""


def render(board: Board) -> str:
    """Return a dashboard as the JSON that Grafana imports: the same text for the same data."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["llmkg"])
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .editable()
        .link(_links())
        .annotation(_alerts())
    )
    for variable in variables(by_operation=board.by_operation, with_objective=board.with_objective):
        builder = builder.with_variable(variable)
    _lay_out(builder, board)
    return json.dumps(builder.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _links() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("llmkg").type(models.DashboardLinkType.DASHBOARDS)
    return link.tags(["llmkg"]).as_dropdown(True).keep_time(True).include_vars(True)


def _alerts() -> dashboard.AnnotationQuery:
    query = f"{select(semconv.ALERT_STATUS, state='firing')} == 1"
    return (
        dashboard.AnnotationQuery().name("Firing alerts").datasource(DATASOURCE).expr(query).icon_color(RED)
    )


def _lay_out(builder: dashboard.Dashboard, board: Board) -> None:
    """Give every row and panel its id and its place; a panel that does not fit begins a new line."""
    identity, top = 0, 0
    for row in board.rows:
        identity += 1
        place = models.GridPos(x=0, y=top, w=COLUMNS, h=1)
        builder.with_row(dashboard.Row(row.title).id(identity).grid_pos(place))
        top += 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, height = 0, top + height, 0
            identity += 1
            place = models.GridPos(x=left, y=top, w=panel.width, h=HEIGHTS[panel.kind])
            builder.with_panel(_panel(panel).id(identity).grid_pos(place))
            left, height = left + panel.width, max(height, HEIGHTS[panel.kind])
        top += height


def _panel(panel: Panel) -> Any:
    """Return the SDK's builder of a panel; its kinds share methods but no type."""
    builder = _KINDS[panel.kind](panel)
    builder.title(panel.title).description(panel.description).datasource(DATASOURCE).unit(panel.unit)
    instant = panel.kind == "table"
    for index, query in enumerate(panel.queries):
        builder.with_target(_target(query, chr(ord("A") + index), instant=instant, kind=panel.kind))
    if panel.maximum is not None:
        builder.min(0).max(panel.maximum)
    if panel.thresholds:
        steps = [models.Threshold(value=value, color=colour) for value, colour in panel.thresholds]
        mode = models.ThresholdsMode.ABSOLUTE
        builder.thresholds(dashboard.ThresholdsConfig().mode(mode).steps(steps))
    if any(query.quiet for query in panel.queries) and panel.kind == "stat":
        builder.no_value("0")
    return builder


def _target(query: Query, ref_id: str, *, instant: bool, kind: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref_id)
    target.datasource(DATASOURCE).exemplar(query.exemplars)
    if instant:
        return target.instant().format(PromQueryFormat.TABLE)
    return target.range().format(
        PromQueryFormat.HEATMAP if kind == "heatmap" else PromQueryFormat.TIME_SERIES
    )


def _graph(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE)
    legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True).calcs(["lastNotNull", "max"])
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    tooltip.sort(common_models.SortOrder.DESCENDING)
    graph = timeseries.Panel().legend(legend).tooltip(tooltip).fill_opacity(10).min(0)
    if panel.stacked:
        graph.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL)).fill_opacity(40)
    if panel.thresholds:
        style = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        graph.thresholds_style(style)
    return graph


def _stat(panel: Panel) -> stat.Panel:
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    shown = stat.Panel().reduce_options(reduce).graph_mode(common_models.BigValueGraphMode.AREA)
    return shown.color_mode(
        common_models.BigValueColorMode.VALUE if panel.thresholds else common_models.BigValueColorMode.NONE
    )


def _states(panel: Panel) -> statetimeline.Panel:
    colours = {state: colour for colour, names in COLOURS.items() for state in names}
    shown: dict[str, models.ValueMappingResult] = {
        str(index): models.ValueMappingResult(text=state, color=colours[state], index=index)
        for index, state in enumerate(panel.states)
    }
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST)
    legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True)
    return (
        statetimeline.Panel()
        .mappings([models.ValueMap(options=shown)])
        .merge_values(True)
        .show_value(common_models.VisibilityMode.AUTO)
        .legend(legend)
    )


def _table(_panel: Panel) -> table.Panel:
    hidden = dict.fromkeys(("Time", "Value", "__name__", "job", "state"), True)
    return table.Panel().with_transformation(
        models.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden})
    )


def _heatmap(panel: Panel) -> heatmap.Panel:
    axis = heatmap.YAxisConfig().unit(panel.unit)
    return heatmap.Panel().calculate(False).y_axis(axis).show_color_scale(True).show_legend()


_KINDS: dict[str, Any] = {
    "graph": _graph,
    "stat": _stat,
    "states": _states,
    "table": _table,
    "heatmap": _heatmap,
}
