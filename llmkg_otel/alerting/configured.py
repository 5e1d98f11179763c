"""Which rules a configuration asks for: ours, those of its objectives, and the user's own files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmkg_otel.alerting.rules import load_default_rules, load_rules, parse_rules
from llmkg_otel.alerting.slo import slo_rules, slo_warnings

if TYPE_CHECKING:
    from llmkg_otel.alerting.rules import RuleFile
    from llmkg_otel.config import ProductionConfig

__all__ = ["configured_rules", "own_rules", "reach_seconds"]


def reach_seconds(config: ProductionConfig) -> float:
    """Return how far back samples are kept in process: by their age, and by their number in a series."""
    monitoring = config.monitoring
    points = monitoring.max_metric_points * monitoring.alert_check_interval_seconds
    return min(monitoring.metric_retention_seconds, points)


def own_rules(config: ProductionConfig, *, reach: float | None = None) -> list[RuleFile]:
    """Return the rules that this layer brings itself, which `rules export` writes for Prometheus.

    `reach` (seconds) leaves out the windows of objectives that are longer, and warns of them (None: none).
    """
    files = [load_default_rules(retention_seconds=reach)] if config.alerting.default_rules else []
    if config.slos:
        text = slo_rules(config.slos, within_seconds=reach)
        objectives = parse_rules(text, "slos", retention_seconds=reach)
        told = (*objectives.warnings, *slo_warnings(config.slos, reach))
        files.append(replace(objectives, warnings=told))
    return files


def configured_rules(config: ProductionConfig) -> list[RuleFile]:
    """Return all rules that are evaluated in process; raise ConfigurationError if a rule file is wrong."""
    reach = reach_seconds(config)
    interval = config.monitoring.alert_check_interval_seconds
    named = [
        load_rules(path, retention_seconds=reach, interval_seconds=interval)
        for path in config.alerting.rule_files
    ]
    return [*own_rules(config, reach=reach), *named]
