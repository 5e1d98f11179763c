"""The dashboards' variables: data source, instances, operations, and the objective of the SLO panels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.table import prometheus_name

if TYPE_CHECKING:
    from grafana_foundation_sdk.cog import builder as cog

__all__ = ["variables"]

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
OBJECTIVES = ("0.99", "0.995", "0.999", "0.9995")
LATENCIES = tuple(f"{bound}" for bound in semconv.DURATION_BUCKETS if 0.05 <= bound <= 10)
"""Only a bucket's own bound can be an objective."""


def variables(*, by_operation: bool, with_objective: bool) -> list[cog.Builder[models.VariableModel]]:
    """Return the variables of a dashboard, in the order in which they depend on each other."""
    lifecycle = prometheus_name(semconv.LIFECYCLE_STATUS)
    calls = f"{prometheus_name(semconv.OPERATION_DURATION)}_count"
    operation = semconv.OPERATION_NAME.replace(".", "_")
    chosen: list[cog.Builder[models.VariableModel]] = [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _values_of("instance", "Instance", f"label_values({lifecycle}, instance)"),
    ]
    if by_operation:
        query = f'label_values({calls}{{instance=~"$instance"}}, {operation})'
        chosen.append(_values_of("operation", "Operation", query))
    if with_objective:
        chosen.append(
            _one_of("objective", "Objective: share of calls that must do well", OBJECTIVES, "0.999")
        )
        chosen.append(_one_of("latency", "Objective: seconds a call may take", LATENCIES, "0.5"))
    return chosen


def _values_of(name: str, label: str, query: str) -> dashboard.QueryVariable:
    everything = models.VariableOption(text="All", value="$__all", selected=True)
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"query": query, "refId": f"variable-{name}"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


def _one_of(name: str, label: str, values: tuple[str, ...], chosen: str) -> dashboard.CustomVariable:
    options = [models.VariableOption(text=v, value=v, selected=v == chosen) for v in values]
    current = models.VariableOption(text=chosen, value=chosen, selected=True)
    return (
        dashboard.CustomVariable(name).label(label).values(",".join(values)).options(options).current(current)
    )
